"""A sweep in parts of a few minutes: for a machine that is lent for short times.

Does what the workflow does, run by run in the order of the preset, into the same files, and
leaves off in time; the same call goes on. Training and sampling stop wherever they are and go on
with the same bits; other jobs are short and are begun only while there is time for them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import LATENT_SETS, Preset, RunConfig
from ..errors import UserError
from ..status import is_done, run_jobs

#: Share of the time that must be left for a job that cannot be stopped to be begun.
SHORT_JOB_SHARE = 0.5
#: From what is being done to what is called as report(done, in all, loss or nothing).
Reporter = Callable[[str], Callable[..., None]]


@dataclass(frozen=True)
class Piece:
    """One job of the sweep.

    Attributes:
        done: whether its output stands.
        work: does it within that many seconds; returns whether it is done.
        stops: whether it can leave off in between.
    """

    name: str
    done: Callable[[], bool]
    work: Callable[[float], bool]
    stops: bool = False


def _whole(work: Callable[[], None]) -> Callable[[float], bool]:
    """A job that takes no time limit."""

    def run(seconds: float) -> bool:
        work()
        return True

    return run


def extractor_weights(preset: Preset, data: Path) -> Path | None:
    """The extractor's weights file, where it is not one that the extractor finds by itself."""
    if preset.evaluation.extractor == "digits_cnn":
        return data / "digits_cnn.safetensors"
    return preset.evaluation.extractor_weights


def _preparation(preset: Preset, results: Path, report: Reporter) -> Iterator[Piece]:
    from .. import jobs

    data = results / "data"
    description = data / "dataset.json"
    yield Piece("data", description.is_file, _whole(lambda: jobs.prepare_data(preset, data)))
    if preset.data.name in LATENT_SETS:
        yield Piece(
            "latents",
            (data / "latents.json").is_file,
            _whole(lambda: jobs.encode_latents(preset, data, report)),
        )
    weights = extractor_weights(preset, data)
    if preset.evaluation.extractor == "digits_cnn":
        train = _whole(lambda: jobs.train_extractor(preset, data, weights))
        yield Piece("extractor", weights.with_suffix(".json").is_file, train)
    floor = data / "floor.json"
    score = _whole(lambda: jobs.score_floor(preset, data, weights, results / "cache", floor))
    yield Piece("floor", floor.is_file, score)


def _of_run(preset: Preset, run: RunConfig, results: Path, report: Reporter) -> Iterator[Piece]:
    from .. import jobs
    from ..files import write_json
    from ..manifest import assemble

    data, folder = results / "data", results / "runs" / run.name
    manifest = folder / "manifest.json"
    outputs = {job.output: job for job in run_jobs(run, preset, results)}

    def done(path: Path) -> Callable[[], bool]:
        return lambda: is_done(outputs[path])

    for part in run.parts:

        def train(seconds: float, part: str = part) -> bool:
            state = results / "state" / run.name / f"{part}-{run.hash}"
            weights = folder / f"{part}.safetensors"
            label = f"{run.name} {part}"
            return jobs.train_part(run, part, data, weights, state, report(label), seconds)

        yield Piece(f"{run.name} {part}", done(folder / f"{part}.json"), train, stops=True)

    def join(seconds: float) -> bool:
        write_json(manifest, assemble(run, folder))
        return True

    # Joining costs nothing, so it is done anew: a manifest may be of other settings.
    yield Piece(f"{run.name} manifest", lambda: done(folder / "scores.json")(), join, stops=True)
    samples = {}
    for name, settings in preset.sampling.items():
        output = samples[name] = folder / f"samples-{name}.safetensors"

        def sample(seconds: float, settings=settings, output: Path = output) -> bool:
            label = f"{run.name} {output.stem}"
            return jobs.sample_run(manifest, settings, output, report(label), seconds)

        description = output.with_suffix(".json")
        yield Piece(f"{run.name} {output.stem}", done(description), sample, stops=True)
    weights, scores = extractor_weights(preset, data), folder / "scores.json"
    score = _whole(
        lambda: jobs.score_run(preset, manifest, samples, data, weights, results / "cache", scores)
    )
    yield Piece(f"{run.name} scores", done(scores), score)


def finished(preset: Preset, results: Path) -> list[RunConfig]:
    """The runs whose scores stand."""
    return [
        run for run in preset.runs() if all(is_done(job) for job in run_jobs(run, preset, results))
    ]


def advance(
    preset: Preset,
    results: Path,
    names: Sequence[str],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = print,
    report: Reporter = lambda label: lambda *progress: None,
) -> bool:
    """Do as much of a sweep as there is time for.

    Args:
        results: folder of the sweep, as the workflow lays it out.
        names: runs to do, in this order; every run of the preset where there are none.
        seconds: when to leave off.
        clock: seconds from any origin.

    Returns:
        Whether all of these runs are done.

    Raises:
        UserError: a name is not of a run of the preset, or a job cannot be done.
    """
    if seconds <= 0:
        raise UserError(f"--seconds: found {seconds:g}; expected more than 0")
    runs = [preset.run(name) for name in names] or preset.runs()
    end = clock() + seconds

    def pieces() -> Iterator[Piece]:
        yield from _preparation(preset, results, report)
        for run in runs:
            yield from _of_run(preset, run, results, report)

    for piece in pieces():
        if piece.done():
            continue
        left = end - clock()
        if left <= 0 or (not piece.stops and left < SHORT_JOB_SHARE * seconds):
            say(f"next: {piece.name}")
            return False
        began = clock()
        over = piece.work(left)
        say(f"{piece.name}: {'done' if over else 'stopped'} after {clock() - began:.0f} s")
        if not over:
            return False
    return True
