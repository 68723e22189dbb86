"""What all benchmarks share: rows with a target, and times measured in turn."""

import statistics
import time
from collections.abc import Callable

COLUMNS = ("name", "value", "unit", "target", "better")


def row(name: str, value: float, unit: str, target: float, better: str) -> dict:
    """One line of the table; ``better`` says on which side of the target is good."""
    return dict(zip(COLUMNS, (name, round(value, 3), unit, target, better), strict=True))


def seconds(work: Callable[[], object], repeat: int = 1) -> float:
    """Seconds that ``repeat`` calls take, each."""
    began = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - began) / repeat


def paired(candidates: dict[str, Callable[[], object]], rounds: int, repeat: int) -> dict:
    """Median seconds of every candidate, measured in turn so that drift hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for work in candidates.values():
        work()
    for _ in range(rounds):
        for name, work in candidates.items():
            times[name].append(seconds(work, repeat))
    return {name: statistics.median(values) for name, values in times.items()}


def median_ratio(a: Callable[[], object], b: Callable[[], object], rounds: int) -> float:
    """Median over rounds of the time of a over that of b, each pair measured back to back.

    The order turns every round, so that what one leaves behind favours neither.
    """
    a(), b()
    ratios = []
    for i in range(rounds):
        first, second = (a, b) if i % 2 else (b, a)
        times = {first: seconds(first), second: seconds(second)}
        ratios.append(times[a] / times[b])
    return statistics.median(ratios)
