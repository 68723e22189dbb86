"""The jobs of a preset's language half, in the order in which a short loan of a machine does them.

The judge, if the preset trains one, comes first: every score needs it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..config import LanguageConfig, TextRun
from .advance import Piece, Reporter, stands, training, whole


def _judge(language: LanguageConfig, base: Path) -> Path | None:
    """Manifest of the preset's own judge."""
    judge = language.judge()
    return base / "runs" / judge.name / "manifest.json" if judge else None


def _preparation(language: LanguageConfig, base: Path, report: Reporter) -> Iterator[Piece]:
    from .. import language_jobs
    from ..evaluation.text_scoring import score_floor

    data, floor = base / "data", base / "floor.json"
    yield whole(
        "data", (data / "text.json").is_file, lambda: language_jobs.prepare_data(language, data)
    )
    manifest = _judge(language, base)
    if manifest is not None:
        yield from training(language.judge(), base, manifest, report)
    yield whole("floor", floor.is_file, lambda: score_floor(language, data, manifest, floor))


def _of_run(language: LanguageConfig, run: TextRun, base: Path, report: Reporter):
    from .. import language_jobs
    from ..evaluation.text_scoring import score_run

    data, folder = base / "data", base / "runs" / run.name
    manifest, scores = folder / "manifest.json", folder / "scores.json"
    yield from training(run, base, scores, report)
    samples = {}
    for name, settings in language.generation.items():
        output = samples[name] = folder / f"samples-{name}.safetensors"

        def generate(seconds: float, settings=settings, output: Path = output) -> bool:
            told = report(f"{run.name} {output.stem}")
            return language_jobs.generate_run(manifest, data, settings, output, told, seconds)

        made = stands(output.with_suffix(".json"), run)
        yield Piece(f"{run.name} {output.stem}", made, generate, stops=True)
    judge = _judge(language, base)
    yield whole(
        f"{run.name} scores",
        stands(scores, run),
        lambda: score_run(language, manifest, samples, data, judge, scores),
    )


def text_pieces(
    language: LanguageConfig, base: Path, names: Sequence[str], report: Reporter
) -> Iterator[Piece]:
    """Every job of these runs of the language sweep.

    Args:
        base: folder ``language`` of the sweep's results.
        names: runs to do, in this order; every run of the preset where there are none.

    Raises:
        UserError: a name is not of a run of the language sweep.
    """
    runs = [language.run(name) for name in names] or language.runs()
    yield from _preparation(language, base, report)
    for run in runs:
        yield from _of_run(language, run, base, report)


def finished_text_runs(language: LanguageConfig, base: Path) -> list[TextRun]:
    """The runs whose scores stand."""
    return [
        run for run in language.runs() if stands(base / "runs" / run.name / "scores.json", run)()
    ]
