"""How far a sweep is: jobs done by stage, time left from those that are, failures with their logs.

Looks at the files of a results folder only, so it can be asked at any time and from anywhere.
"""

import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .config import LATENT_SETS, LanguageConfig, Preset, RunConfig
from .errors import UserError
from .parts import part_of
from .records import number, read_record

#: Lines of a failed job's log that are shown.
TAIL = 6
STAGES = ("data", "train", "sample", "evaluate", "language", "memory", "report")
FAULT = re.compile(r"^(Traceback \(most recent call last\)|diffusionblocks: )", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        output: its last output; there when the job is done.
        work: how long it takes relative to others of its stage (layers trained, say).
        config_hash: of the run that the output must come from, or "" where any will do.
    """

    stage: str
    name: str
    output: Path
    log: Path
    work: float = 1.0
    config_hash: str = ""


def jobs_of(preset: Preset, results: Path) -> Iterator[Job]:
    """Every job of a sweep, in order of stages."""
    logs = results / "logs"
    yield Job("data", "data", results / "data/dataset.json", logs / "data.log")
    if preset.data.name in LATENT_SETS:
        yield Job("data", "latents", results / "data/latents.json", logs / "latents.log")
    if preset.evaluation.extractor == "digits_cnn":
        yield Job("data", "extractor", results / "data/digits_cnn.json", logs / "extractor.log")
    yield Job("data", "floor", results / "data/floor.json", logs / "floor.log")
    for run in preset.runs():
        yield from run_jobs(run, preset, results)
    yield Job("report", "tables", results / "tables/setting.csv", logs / "tables.log")
    notebook = results / "report/image_quality.html"
    yield Job("report", "notebook", notebook, logs / "notebook.log")
    memory = results / "memory"
    for sweep in preset.memory.sweeps:
        table = memory / f"tables/{sweep}.csv"
        yield Job("memory", sweep, table, logs / f"memory/{sweep}.log")
    for network in preset.memory.crossings:
        name = "crossing-" + re.sub(r"\W+", "_", network).lower()
        yield Job("memory", name, memory / f"{name}.csv", logs / f"memory/{name}.log")
    yield Job("memory", "inference", memory / "inference.csv", logs / "memory/inference.log")
    if preset.memory.text is not None:
        yield Job("memory", "text", memory / "text.csv", logs / "memory/text.log")
    yield Job("memory", "notebook", results / "report/memory.html", logs / "memory/notebook.log")
    if preset.language is not None:
        yield from language_jobs(preset.language, results)
    yield Job("report", "claims", results / "tables/claims.csv", logs / "claims.log")
    yield Job("report", "verdict", results / "report/verdict.html", logs / "verdict.log")
    yield Job("report", "site", results / "report/index.html", logs / "site.log")


def language_jobs(language: LanguageConfig, results: Path) -> Iterator[Job]:
    """Every job of the language half."""
    folder, logs, judge = results / "language", results / "logs/language", language.judge()
    yield Job("language", "data", folder / "data/text.json", logs / "data.log")
    for run in [*language.runs(), *([judge] if judge else [])]:
        own = folder / "runs" / run.name
        for name in run.parts:
            log = logs / "train" / f"{run.name}-{name}.log"
            yield Job("language", f"{run.name} {name}", own / f"{name}.json", log, 1.0, run.hash)
        if run is not judge:
            log = logs / "score" / f"{run.name}.log"
            yield Job("language", f"{run.name} scores", own / "scores.json", log, 1.0, run.hash)
    yield Job("language", "floor", folder / "floor.json", logs / "floor.log")
    yield Job("language", "tables", folder / "tables/setting.csv", logs / "tables.log")
    page = results / "report/language_quality.html"
    yield Job("language", "notebook", page, logs / "notebook.log")


def run_jobs(run: RunConfig, preset: Preset, results: Path) -> Iterator[Job]:
    """Every job of one run, in order."""
    folder, logs = results / "runs" / run.name, results / "logs"
    for name in run.parts:
        part = part_of(run, name)
        depth = sum(len(r) for b, r in enumerate(run.layer_ranges()) if b in part.blocks)
        log = logs / "train" / f"{run.name}-{name}.log"
        label = f"{run.name} {name}"
        yield Job("train", label, folder / f"{name}.json", log, depth, run.hash)
    for sampling, settings in preset.sampling.items():
        log = logs / "sample" / f"{run.name}-{sampling}.log"
        output = folder / f"samples-{sampling}.json"
        work = settings.samples * settings.steps / run.blocks
        yield Job("sample", f"{run.name} {sampling}", output, log, work, run.hash)
    log = logs / "evaluate" / f"{run.name}.log"
    yield Job("evaluate", run.name, folder / "scores.json", log, 1.0, run.hash)


def is_done(job: Job) -> bool:
    """Whether a job's output is there, whole, and from the settings of today."""
    if not job.output.is_file():
        return False
    if job.output.suffix != ".json":
        return True
    try:
        record = read_record(job.output, dict)
    except UserError:
        return False
    return not job.config_hash or record.get("config_hash") == job.config_hash


def seconds_of(job: Job) -> float | None:
    """How long a finished job took, if its output says."""
    if job.output.suffix != ".json":
        return None
    record = read_record(job.output, dict)
    taken = [record.get("seconds"), record.get("fixed_seconds", 0.0)]
    return sum(taken) if all(map(number, taken)) else None


def failure(job: Job) -> str:
    """The tail of the log of a job that ended in an error; "" where there is none."""
    if not job.log.is_file():
        return ""
    text = job.log.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.rstrip().splitlines()[-TAIL:]) if FAULT.search(text) else ""


def time_left(done: list[Job], left: list[Job]) -> float | None:
    """Seconds of work that a stage has left, from the jobs of it that are done.

    Returns:
        None where no finished job says how long it took.
    """
    taken = [(seconds_of(job), job.work) for job in done]
    rates = [seconds / work for seconds, work in taken if seconds is not None]
    if not left:
        return 0.0
    return statistics.median(rates) * sum(job.work for job in left) if rates else None


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _time_left_in_words(seconds: float, cores: int, unknown: list[str]) -> str:
    """The time left, and the stages that it leaves out since none of their jobs is done."""
    untimed = f"{', '.join(unknown)} (no job of these says how long it took)" if unknown else ""
    if not seconds:
        return f"not known yet for {untimed}" if unknown else "next to nothing"
    besides = f", besides {untimed}" if unknown else ""
    return f"about {duration(seconds)} on {cores} cores{besides}"


def status(preset: Preset, results: Path, cores: int) -> tuple[str, bool]:
    """The state of a sweep in words.

    Args:
        cores: how many jobs run side by side, for the time left.

    Returns:
        the text, and whether a job has failed.
    """
    jobs = list(jobs_of(preset, results))
    finished = {job: is_done(job) for job in jobs}
    lines, total, unknown = [], 0.0, []
    for stage in STAGES:
        mine = [job for job in jobs if job.stage == stage]
        left = [job for job in mine if not finished[job]]
        seconds = time_left([job for job in mine if finished[job]], left)
        if seconds is None:
            unknown.append(stage)
        else:
            total += seconds
        about = "" if not left else f"   about {duration(seconds)} of work left" if seconds else ""
        count = f"{len(mine) - len(left)}/{len(mine)}"
        lines.append(f"{stage:<9} {count:>9} done{about}")
    failures = [(job, failure(job)) for job in jobs if not finished[job]]
    failures = [(job, tail) for job, tail in failures if tail]
    everything = sum(finished.values())
    lines.append(f"{'all':<9} {f'{everything}/{len(jobs)}':>9} done")
    if everything < len(jobs):
        lines.append("time left: " + _time_left_in_words(total / cores, cores, unknown))
    for job, tail in failures:
        lines += ["", f"failed: {job.stage} {job.name} ({job.log})"]
        lines += [f"    {line}" for line in tail.splitlines()]
    return "\n".join(lines) + "\n", bool(failures)
