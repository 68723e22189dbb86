"""How long jobs take, from measured step times: of a sweep that ran, or of steps measured here.

A training job takes a start and its steps; one step takes what it took where it was measured,
in proportion to its examples.
"""

import csv
import platform
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt

from ..config import Preset, RunConfig, validated
from ..errors import UserError
from ..files import read_json
from .dag import Job, jobs_of, training_jobs

#: A sampling step runs a layer forwards only; a training step costs three times that.
FORWARD = 1 / 3
#: How often every kind of step is measured; the fastest counts.
ROUNDS = 3


class Times(BaseModel):
    """Measured times.

    Attributes:
        source: where they come from, for people.
        device: what was measured.
        batch_size: examples of a measured training step.
        start: seconds of a job before its first step and after its last.
        step: seconds of a training step by kind of job.
        whole: seconds of jobs by kind, where they were measured as a whole.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    source: str
    device: str
    batch_size: PositiveInt
    start: NonNegativeFloat
    step: dict[str, PositiveFloat]
    whole: dict[str, NonNegativeFloat] = {}


def read_times(path: Path) -> Times:
    """Times that ``cluster measure`` wrote.

    Raises:
        UserError: the file is missing or holds something else.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no times; write it with: diffusionblocks cluster measure")
    return validated(Times, values, str(path))


def wall_seconds(results: Path, job: Job) -> float | None:
    """How long a job of a sweep took as the workflow saw it; None where it did not end."""
    path = results / "benchmarks" / f"{job.name}.tsv"
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return float(rows[-1]["s"]) if rows else None


def _medians(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    kinds: dict[str, list[float]] = {}
    for kind, value in values:
        kinds.setdefault(kind, []).append(value)
    return {kind: statistics.median(found) for kind, found in kinds.items()}


def times_of_results(preset: Preset, results: Path) -> Times:
    """Times from a sweep of the same preset, finished or not.

    Raises:
        UserError: none of its training jobs has ended.
    """
    steps, starts, whole, device = [], [], [], ""
    for job in jobs_of(preset):
        wall = wall_seconds(results, job)
        if wall is None:
            continue
        if job.rule != "train":
            whole.append((job.kind, wall))
            continue
        run, part = job.name.removeprefix("train/").rsplit("-", 1)
        record = read_json(results / "runs" / run / f"{part}.json")
        steps.append((job.kind, record["seconds_per_iteration"]))
        starts.append(max(0.0, wall - record["seconds"]))
        device = record["provenance"]["device"]
    if not steps:
        raise UserError(
            f"{results} holds no wall times of finished training jobs; run the sweep there, or "
            "measure steps with: diffusionblocks cluster measure"
        )
    return Times(
        source=f"{len(steps)} training jobs in {results}",
        device=device,
        batch_size=preset.training.batch_size,
        start=statistics.median(starts),
        step=_medians(steps),
        whole=_medians(whole),
    )


def one_of_each_kind(preset: Preset) -> dict[str, tuple[RunConfig, str]]:
    """A run and a part for every kind of training job."""
    found: dict[str, tuple[RunConfig, str]] = {}
    for run in preset.runs():
        for job in training_jobs(run):
            found.setdefault(job.kind, (run, job.name.rsplit("-", 1)[1]))
    return found


def times_measured(
    preset: Preset,
    name: str,
    batch_size: int,
    step: Callable[[RunConfig, str, int], tuple[float, str]],
    start: Callable[[], float],
) -> Times:
    """Times of steps run here.

    Args:
        name: what to call the preset.
        batch_size: examples of a step; a job's own number may take too long here.
        step: from run, part and batch size to seconds of a training step and the device.
        start: seconds that a job takes before its first step.
    """
    found: dict[str, float] = {}
    # Round by round, so that other work on the machine does not hit one kind alone.
    for _ in range(ROUNDS):
        for kind, (run, part) in one_of_each_kind(preset).items():
            seconds, device = step(run, part, batch_size)
            found[kind] = min(seconds, found.get(kind, seconds))
    return Times(
        source=f"steps of {name} at batch {batch_size}",
        device=platform.machine() if device == "cpu" else device,
        batch_size=batch_size,
        start=start(),
        step=found,
    )


def job_seconds(preset: Preset, times: Times, jobs: Iterable[Job]) -> dict[str, float]:
    """Seconds of every job by name; 0 for those that nothing is known of.

    Raises:
        UserError: the times lack a kind of training job.
    """
    share = preset.training.batch_size / times.batch_size
    per_layer = _per_layer(preset, times)

    def seconds(job: Job) -> float:
        if job.rule == "train":
            if job.kind not in times.step:
                raise UserError(
                    f"no step time for {job.kind!r} in {times.source}; expected one of "
                    f"{[*times.step]}: measure this preset with: diffusionblocks cluster measure"
                )
            return times.start + job.steps * times.step[job.kind] * share
        if job.kind in times.whole or job.rule != "sample":
            return times.whole.get(job.kind, 0.0)
        return times.start + job.steps * job.layers * per_layer * FORWARD

    return {job.name: seconds(job) for job in jobs}


def _per_layer(preset: Preset, times: Times) -> float:
    """Seconds of one layer of one example of a training step, from the deepest kind of job."""
    jobs = [job for run in preset.runs() for job in training_jobs(run) if job.kind in times.step]
    deepest = max(jobs, key=lambda job: job.layers, default=None)
    if deepest is None:
        return 0.0
    return times.step[deepest.kind] / (deepest.layers * times.batch_size)
