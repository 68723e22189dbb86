"""Scale on paper: a sweep's jobs, work, memory, critical path and wall time on N GPUs.

Block-wise runs are compared with end to end on one run each. A run end to end is one job; it
cannot be split over GPUs without communication at every step, which blocks do not need.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import Preset, RunConfig
from .dag import Job, jobs_of, training_jobs
from .needs import training_peaks
from .schedule import critical_path, finish
from .times import Times, job_seconds

GPUS = tuple(2**i for i in range(11))
SWEEP = "whole sweep"
HOUR = 3600.0
GIB = 2**30


@dataclass(frozen=True)
class Work:
    """Something to be done on many GPUs.

    Attributes:
        name: for people.
        method: of its runs; "" for the whole sweep.
        blocks: of its runs; 0 for the whole sweep.
        jobs: all of its jobs; those needed stand before.
        memory: planned bytes of its largest training job, for each of its processes.
    """

    name: str
    method: str
    blocks: int
    jobs: list[Job]
    memory: int


def _name(run: RunConfig) -> str:
    if run.method == "end_to_end":
        return "end to end, one run"
    return f"B = {run.blocks}, {run.method.removeprefix('blockwise_')}, one run"


def works(
    preset: Preset, peaks: Callable[[Preset], dict[str, dict[str, int]]] = training_peaks
) -> list[Work]:
    """The whole sweep, then the training of one run of every method and number of blocks."""
    memory = peaks(preset)
    largest = max(max(parts.values()) for parts in memory.values())
    found = [Work(SWEEP, "", 0, jobs_of(preset), largest)]
    known = set()
    for run in preset.runs():
        if (run.method, run.blocks) in known:
            continue
        known.add((run.method, run.blocks))
        jobs = [Job(j.name, j.rule, j.kind, steps=j.steps) for j in training_jobs(run)]
        held = max(memory[run.name].values())
        found.append(Work(_name(run), run.method, run.blocks, jobs, held))
    return found


def rows(
    preset: Preset, times: Times, chosen: Sequence[Work], gpus: Sequence[int] = GPUS
) -> list[dict[str, Any]]:
    """A row for every work and number of GPUs.

    Returns:
        work, method, blocks, gpus, jobs, gpu_hours, memory_gib, critical_path_hours, hours.
    """
    found = []
    for work in chosen:
        seconds = job_seconds(preset, times, work.jobs)
        longest = critical_path(work.jobs, seconds)
        for count in gpus:
            found.append(
                {
                    "work": work.name,
                    "method": work.method,
                    "blocks": work.blocks,
                    "gpus": count,
                    "jobs": len(work.jobs),
                    "gpu_hours": sum(seconds.values()) / HOUR,
                    "memory_gib": work.memory / GIB,
                    "critical_path_hours": longest / HOUR,
                    "hours": finish(work.jobs, seconds, count) / HOUR,
                }
            )
    return found


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]


def report(name: str, times: Times, found: Sequence[dict[str, Any]]) -> str:
    """Rows in words: two tables and what to read from them.

    Args:
        name: what to call the preset.
    """
    gpus = list(dict.fromkeys(row["gpus"] for row in found))
    by_work: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        by_work.setdefault(row["work"], []).append(row)
    summary = [["", "jobs", "GPU hours", "GiB a process", "critical path, hours"]]
    wall = [["hours on GPUs:", *map(str, gpus)]]
    for work, lines in by_work.items():
        first = lines[0]
        keys = ("gpu_hours", "memory_gib", "critical_path_hours")
        summary.append([work, str(first["jobs"]), *(_number(first[key]) for key in keys)])
        wall.append([work, *(_number(line["hours"]) for line in lines)])
    return "\n".join(
        [
            f"{name}: a GPU that does a step as fast as {times.device} did ({times.source})",
            "",
            *_aligned(summary),
            "",
            *_aligned(wall),
            "",
            "A run end to end is one job: more GPUs do not shorten it unless they communicate at "
            "every step.",
            "The blocks of an independent run are a job each and never communicate.",
            "",
        ]
    )
