"""The jobs of a sweep as the workflow's rules make them, for planning only.

A test compares their numbers with the workflow's own dry run.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ..config import LATENT_SETS, LanguageConfig, Preset, RunConfig, TextRun
from ..parts import part_of


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        name: unique; where its wall time is noted, below the results' ``benchmarks`` folder.
        rule: the workflow's rule.
        kind: jobs of one kind take the same time.
        run: name of the run it belongs to, or "".
        needs: names of the jobs that must end before it starts.
        urgent: higher goes first, as in the workflow.
        steps: training steps, or trajectories times steps of a sampling job.
        layers: run in one of these steps (mean over blocks).
    """

    name: str
    rule: str
    kind: str
    run: str = ""
    needs: tuple[str, ...] = ()
    urgent: int = 0
    steps: int = 0
    layers: float = 0.0


def training_jobs(run: RunConfig, ready: str = "data") -> Iterable[Job]:
    """The training jobs of a run: one for each of its parts.

    Args:
        ready: the job that makes what they train on.
    """
    for name in run.parts:
        part = part_of(run, name)
        layers = [len(part.layers[b] or range(part.depth)) for b in part.blocks]
        yield Job(
            name=f"train/{run.name}-{name}",
            rule="train",
            kind=f"train {part.depth} layers, {sum(layers) / len(layers):g} a step",
            run=run.name,
            needs=(ready,),
            urgent=10,
            steps=run.training.iterations * len(part.blocks),
            layers=sum(layers) / len(layers),
        )


def run_jobs(run: RunConfig, preset: Preset, ready: str = "data") -> Iterable[Job]:
    """Every job of a run, from training to its scores."""
    trained = list(training_jobs(run, ready))
    yield from trained
    assembled = f"assemble/{run.name}"
    yield Job(assembled, "assemble", "assemble", run.name, tuple(job.name for job in trained))
    drawn = []
    for name, sampling in preset.sampling.items():
        # Heun looks twice a step, guidance twice a look; one block of the network runs each time.
        looks = sampling.steps * (2 if sampling.solver == "heun" else 1)
        looks *= 1 if sampling.guidance == 1 else 2
        layers = run.network.layers / run.blocks
        yield Job(
            name=f"sample/{run.name}-{name}",
            rule="sample",
            kind=f"sample {name}, {layers:g} layers",
            run=run.name,
            needs=(assembled,),
            steps=sampling.samples * looks,
            layers=layers,
        )
        drawn.append(f"sample/{run.name}-{name}")
    needs = (*drawn, "floor", *_extractor(preset))
    yield Job(f"evaluate/{run.name}", "evaluate", "evaluate", run.name, needs, urgent=5)


def _extractor(preset: Preset) -> tuple[str, ...]:
    return ("extractor",) if preset.evaluation.extractor == "digits_cnn" else ()


def _text_training(run: TextRun, urgent: int) -> Iterable[Job]:
    """The training jobs of a language run; one step sees every position of its sequences."""
    form = "plain" if run.embedding is None else "denoising"
    for name in run.parts:
        part = part_of(run, name)
        depth = sum(len(part.layers[b] or range(part.depth)) for b in part.blocks)
        kind = f"text train {form}, {depth} layers, {run.training.iterations} iterations"
        found = f"language/train/{run.name}-{name}"
        yield Job(found, "text_train", kind, run.name, ("language/data",), urgent)


def text_jobs(language: LanguageConfig) -> list[Job]:
    """Every job of the language half, in an order in which they could run one after another.

    They carry no steps: a plan counts their time where they were measured as a whole.
    """
    judge, judged = language.judge(), ()
    jobs = [Job("language/data", "text_data", "text data", urgent=30)]
    if judge is not None:
        trained = list(_text_training(judge, 25))
        judged = (f"language/assemble/{judge.name}",)
        needs = tuple(job.name for job in trained)
        jobs += [*trained, Job(*judged, "text_assemble", "text assemble", judge.name, needs)]
    scored = []
    for run in language.runs():
        name, trained = run.name, list(_text_training(run, 10))
        needs = tuple(job.name for job in trained)
        assembled, drawn = f"language/assemble/{name}", f"language/generate/{name}"
        jobs += [*trained, Job(assembled, "text_assemble", "text assemble", name, needs)]
        jobs.append(Job(drawn, "text_generate", "text generate", name, (assembled,)))
        scored.append(f"language/score/{name}")
        jobs.append(Job(scored[-1], "text_score", "text score", name, (drawn, *judged)))
    floor, tables = "language/floor", "language/tables"
    jobs.append(Job(floor, "text_floor", "text floor", needs=("language/data", *judged)))
    jobs.append(Job(tables, "text_tables", "text tables", needs=(*scored, floor)))
    page = Job("language/notebook", "language_notebook", "language notebook", needs=(tables,))
    return [*jobs, page]


def jobs_of(preset: Preset) -> list[Job]:
    """Every job of a sweep, in an order in which they could run one after another."""
    extractor = _extractor(preset)
    jobs = [Job("data", "data", "data")]
    ready = "data"
    if preset.data.name in LATENT_SETS:
        ready = "latents"
        jobs.append(Job("latents", "latents", "latents", needs=("data",)))
    jobs += [Job(name, name, name, needs=("data",)) for name in extractor]
    jobs.append(Job("floor", "floor", "floor", needs=(ready, *extractor), urgent=20))
    for run in preset.runs():
        jobs += run_jobs(run, preset, ready)
    scored = tuple(job.name for job in jobs if job.rule == "evaluate")
    jobs.append(Job("tables", "tables", "tables", needs=(*scored, "floor")))
    jobs.append(Job("notebook", "notebook", "notebook", needs=("tables",)))
    memory = [Job(f"memory/{s}", "memory_sweep", f"memory {s}") for s in preset.memory.sweeps]
    memory += [
        Job(f"memory/crossing-{_file(c)}", "memory_crossing", f"memory crossing {c}", urgent=5)
        for c in preset.memory.crossings
    ]
    memory.append(Job("memory/inference", "memory_inference", "memory inference"))
    if preset.memory.text is not None:
        memory.append(Job("memory/text", "memory_text", "memory text"))
    sweeps = tuple(job.name for job in memory if job.rule == "memory_sweep")
    whole = tuple(job.name for job in memory)
    jobs += [*memory, Job("memory/notebook", "memory_notebook", "memory notebook", needs=whole)]
    text = [] if preset.language is None else text_jobs(preset.language)
    written, page = [job.name for job in text[-2:-1]], [job.name for job in text[-1:]]
    jobs += text
    jobs.append(Job("claims", "claims", "claims", needs=("tables", *sweeps, *written)))
    jobs.append(Job("verdict", "verdict", "verdict", needs=("claims",)))
    last = ("claims", "tables", "notebook", "memory/notebook", "verdict", *page)
    return [*jobs, Job("site", "site", "site", needs=last)]


def _file(network: str) -> str:
    """A network's name as the workflow's file names have it."""
    return "".join(c if c.isalnum() or c == "_" else "_" for c in network).lower()
