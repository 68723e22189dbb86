"""What fits a budget: the largest batch of every B, the smallest B of a batch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .plan import plan
from .point import Point, with_training
from .table import size_text


@dataclass(frozen=True)
class Answer:
    """What one way to train can do within a budget.

    Attributes:
        point: the way to train; its batch is the one that was asked for.
        largest_batch: 0 where not even the smallest batch fits.
        peak: bytes at the largest batch, or at the smallest where that does not fit.
    """

    point: Point
    largest_batch: int
    peak: int

    @property
    def fits(self) -> bool:
        """Whether the batch that was asked for fits."""
        return self.point.run.training.batch_size <= self.largest_batch


def largest(peak: Callable[[int], int], budget: int, guess: int = 8) -> tuple[int, int]:
    """Largest count whose peak is within a budget, and that peak, by planning both sides of it.

    Peaks rise with the count, and within each phase of the step they are affine in it: a line
    through the two sides of the bracket lands on the answer, or halving does.

    Args:
        peak: bytes at a count from 1.
        guess: where to look first.

    Returns:
        (count, bytes); count 0, and the bytes of count 1, where that does not fit.
    """
    least = peak(1)
    if least > budget:
        return 0, least
    low, low_peak = 1, least
    high, high_peak = max(2, guess), peak(max(2, guess))
    while high_peak <= budget:
        slope = (high_peak - low_peak) / (high - low)
        low, low_peak = high, high_peak
        # One beyond where the line meets the budget: the other side of the answer.
        high = max(low + 1, min(8 * low, low + int((budget - low_peak) / slope) + 1))
        high_peak = peak(high)
    halve = False
    while high - low > 1:
        middle = low + int((budget - low_peak) * (high - low) / (high_peak - low_peak))
        middle = (low + high) // 2 if halve else min(max(middle, low), high - 1)
        # The line's answer is proved by its successor's not fitting.
        middle = max(middle, low + 1)
        found = peak(middle)
        if found <= budget:
            low, low_peak = middle, found
            if high - low > 1 and not halve:
                after = peak(low + 1)
                if after > budget:
                    break
                low, low_peak = low + 1, after
        else:
            high, high_peak = middle, found
        halve = not halve
    return low, low_peak


def answer(point: Point, budget: int, guess: int = 8) -> Answer:
    """What a way to train can do within a budget in bytes; batches are whole microbatches."""
    unit = point.run.training.accumulation

    def peak(count: int) -> int:
        return plan(with_training(point, batch_size=count * unit)).peak

    count, found = largest(peak, budget, guess)
    return Answer(point, count * unit, found)


def answers(points: Iterable[Point], budget: int) -> list[Answer]:
    """What every way to train can do within a budget in bytes.

    Raises:
        UserError: not one of them fits, whatever the batch.
    """
    found: list[Answer] = []
    for point in points:
        # A block of half the layers takes about twice the batch; begin there.
        before = found[-1] if found and found[-1].largest_batch else None
        guess = 8
        if before and before.point.run.training.model_dump() == point.run.training.model_dump():
            unit = point.run.training.accumulation
            guess = before.largest_batch * before.point.part.depth // point.part.depth // unit
        found.append(answer(point, budget, guess))
    least = min(found, key=lambda a: a.peak)
    if least.largest_batch == 0:
        raise UserError(
            f"a budget of {size_text(budget)} is below the fixed cost: {describe(least.point)} "
            f"needs {size_text(least.peak)} at the smallest batch, {size_text(least.peak - budget)} "
            "are missing; raise --budget, add --blocks or choose a smaller network"
        )
    return found


def describe(point: Point) -> str:
    """B and checkpointing in words."""
    checkpointing = "with" if point.run.training.activation_checkpointing else "without"
    return f"B = {point.run.blocks} {checkpointing} checkpointing"


def verdicts(found: list[Answer], budget: int) -> list[str]:
    """Sentences: the smallest B that fits the batch, with and without checkpointing."""
    sentences = []
    for training in dict.fromkeys(a.point.run.training.model_dump_json() for a in found):
        group = [a for a in found if a.point.run.training.model_dump_json() == training]
        settings = group[0].point.run.training
        word = "with" if settings.activation_checkpointing else "without"
        what = f"batch {settings.batch_size} in {settings.precision} {word} checkpointing"
        fitting = [a for a in group if a.fits]
        if fitting:
            best = min(fitting, key=lambda a: a.point.run.blocks)
            sentences.append(
                f"{what}: B = {best.point.run.blocks} is the smallest that fits "
                f"{size_text(budget)}; its largest batch is {best.largest_batch}"
            )
            continue
        least = min((plan(a.point).peak, a.point.run.blocks) for a in group)
        sentences.append(
            f"{what}: does not fit {size_text(budget)}; the least, B = {least[1]}, needs "
            f"{size_text(least[0])}: {size_text(least[0] - budget)} are missing"
        )
    return sentences


def rows(found: list[Answer], budget: int) -> list[dict[str, Any]]:
    """One row a way to train, for CSV and JSON."""
    return [
        {
            **a.point.columns(),
            "budget_bytes": budget,
            "fits": a.fits,
            "largest_batch": a.largest_batch,
            "peak_bytes_at_largest": a.peak,
        }
        for a in found
    ]
