"""The jobs of a preset's images, in the order in which a short loan of a machine does them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..config import LATENT_SETS, Preset, RunConfig
from ..status import is_done, run_jobs
from .advance import Piece, Reporter, stands, training, whole


def extractor_weights(preset: Preset, data: Path) -> Path | None:
    """The extractor's weights file, where it is not one that the extractor finds by itself."""
    if preset.evaluation.extractor == "digits_cnn":
        return data / "digits_cnn.safetensors"
    return preset.evaluation.extractor_weights


def _preparation(preset: Preset, results: Path, report: Reporter) -> Iterator[Piece]:
    from .. import jobs

    data = results / "data"
    yield whole("data", (data / "dataset.json").is_file, lambda: jobs.prepare_data(preset, data))
    if preset.data.name in LATENT_SETS:
        encoded = (data / "latents.json").is_file
        yield whole("latents", encoded, lambda: jobs.encode_latents(preset, data, report))
    weights = extractor_weights(preset, data)
    if preset.evaluation.extractor == "digits_cnn":
        trained = weights.with_suffix(".json").is_file
        yield whole("extractor", trained, lambda: jobs.train_extractor(preset, data, weights))
    floor, cache = data / "floor.json", results / "cache"
    yield whole(
        "floor", floor.is_file, lambda: jobs.score_floor(preset, data, weights, cache, floor)
    )


def _of_run(preset: Preset, run: RunConfig, results: Path, report: Reporter) -> Iterator[Piece]:
    from .. import jobs

    data, folder = results / "data", results / "runs" / run.name
    manifest, scores = folder / "manifest.json", folder / "scores.json"
    yield from training(run, results, scores, report)
    samples = {}
    for name, settings in preset.sampling.items():
        output = samples[name] = folder / f"samples-{name}.safetensors"

        def sample(seconds: float, settings=settings, output: Path = output) -> bool:
            label = f"{run.name} {output.stem}"
            return jobs.sample_run(manifest, settings, output, report(label), seconds)

        drawn = stands(output.with_suffix(".json"), run)
        yield Piece(f"{run.name} {output.stem}", drawn, sample, stops=True)
    weights, cache = extractor_weights(preset, data), results / "cache"
    yield whole(
        f"{run.name} scores",
        stands(scores, run),
        lambda: jobs.score_run(preset, manifest, samples, data, weights, cache, scores),
    )


def image_pieces(
    preset: Preset, results: Path, names: Sequence[str], report: Reporter
) -> Iterator[Piece]:
    """Every job of these runs of the image sweep.

    Args:
        results: folder of the sweep, as the workflow lays it out.
        names: runs to do, in this order; every run of the preset where there are none.

    Raises:
        UserError: a name is not of a run of the preset.
    """
    runs = [preset.run(name) for name in names] or preset.runs()
    yield from _preparation(preset, results, report)
    for run in runs:
        yield from _of_run(preset, run, results, report)


def finished_runs(preset: Preset, results: Path) -> list[RunConfig]:
    """The runs whose scores stand."""
    return [
        run for run in preset.runs() if all(is_done(job) for job in run_jobs(run, preset, results))
    ]
