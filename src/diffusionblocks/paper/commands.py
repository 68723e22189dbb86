"""The verbs of paper scale: latents, cost, advance, reference."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..config import Preset
from ..errors import UserError
from ..language_commands import language_of
from ..verbs import STOPPED, ended

CONFIG = Path("workflow/config")


def _lines(label: str) -> Callable[..., None]:
    """Progress as plain lines, ten for a job."""
    shown = -1

    def report(done: int, total: int, loss: float | None = None) -> None:
        nonlocal shown
        if 10 * done // total > shown:
            shown = 10 * done // total
            told = "" if loss is None else f", loss {loss:.4g}"
            print(f"{label}: {done}/{total}{told}", file=sys.stderr, flush=True)

    return report


def run_latents(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> None:
    """Verb ``latents``."""
    preset = read_preset(a)
    from ..jobs import encode_latents

    encode_latents(preset, a.output, _lines)


def run_cost(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> None:
    """Verb ``cost``."""

    def read(names: list[str]) -> list[tuple[str, Preset]]:
        return [(name, read_preset(argparse.Namespace(preset=name, set=a.set))) for name in names]

    images, texts = read(a.presets), read(a.language or [])
    halves = [(name, language_of(preset, name)) for name, preset in texts]
    if not images and not halves:
        raise UserError("cost: found no preset; expected one: name it, or --language and its name")
    from .cost import cost, table
    from .text_cost import text_cost

    costs = [(f"`{name}`", cost(preset, Path("results") / name)) for name, preset in images]
    costs += [(f"`{name}`, language", text_cost(language)) for name, language in halves]
    print(table(costs), end="")


def _advance_images(preset: Preset, name: str, results: Path, a: argparse.Namespace) -> bool:
    from .advance import advance
    from .image_pieces import finished_runs, image_pieces

    pieces = image_pieces(preset, results, a.runs or [], _lines)
    over = advance(pieces, a.seconds, say=partial(print, flush=True))
    if runs := finished_runs(preset, results):
        from ..report.tables import write_tables

        write_tables(preset, name, results, results / "tables", runs)
        print(f"{len(runs)} of {len(preset.runs())} runs are in {results}/tables")
    return over


def _advance_language(preset: Preset, name: str, results: Path, a: argparse.Namespace) -> bool:
    language, base = language_of(preset, a.preset), results / "language"
    from .advance import advance
    from .text_pieces import finished_text_runs, text_pieces

    pieces = text_pieces(language, base, a.runs or [], _lines)
    over = advance(pieces, a.seconds, say=partial(print, flush=True))
    if runs := finished_text_runs(language, base):
        from ..report.language_tables import write_language_tables

        tables = base / "tables"
        write_language_tables(language, name, preset.description, base, tables, runs)
        print(f"{len(runs)} of {len(language.runs())} language runs are in {tables}")
    return over


def run_advance(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> int:
    """Verb ``advance``."""
    preset, name = read_preset(a), Path(a.preset).stem
    results = a.results or Path("results") / name
    half = _advance_language if a.language else _advance_images
    return ended(half(preset, name, results, a))


def run_export(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> None:
    """Verb ``reference export``."""
    preset, name = read_preset(a), Path(a.preset).stem
    results = a.results or Path("results") / name
    from .reference import export, has_images

    extractor = preset.evaluation.extractor
    if not has_images(results):
        extractor = language_of(preset, a.preset).evaluation.featurizer
    export(results, name, extractor, a.output)


def run_render(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> None:
    """Verb ``reference render``."""
    from .reference import render

    for path in render(a.reference, a.output, a.ledger, a.published, a.notebooks):
        print(path)


def add_paper(verbs: Any, read_preset: Callable[[argparse.Namespace], Preset]) -> None:
    """Add these verbs to the command line.

    Args:
        verbs: what ``add_subparsers`` returned.
        read_preset: from the command line's namespace to its preset.
    """

    def verb(parent: Any, name: str, handler: Callable, text: str, preset: bool = True):
        p = parent.add_parser(name, help=text, description=text)
        p.set_defaults(handler=partial(handler, read_preset=read_preset))
        if preset:
            p.add_argument("--preset", required=True, help="name or YAML file of a preset")
            p.add_argument("--set", nargs="*", metavar="KEY=VALUE", help="replace single settings")
        return p

    p = verb(verbs, "latents", run_latents, "encode a latent data set")
    p.add_argument("--output", type=Path, required=True, help="folder of the prepared data")
    p = verb(verbs, "cost", run_cost, "what presets cost: jobs, memory, disk", preset=False)
    p.add_argument("presets", nargs="*", metavar="PRESET", help="whose images are counted")
    p.add_argument("--language", nargs="+", metavar="PRESET", help="whose language is counted")
    p.add_argument("--set", nargs="*", metavar="KEY=VALUE", help="replace single settings")
    text = f"do part of a sweep and stop in time; exit code {STOPPED}: the same call goes on"
    p = verb(verbs, "advance", run_advance, text)
    p.add_argument("--language", action="store_true", help="of its language half, not its images")
    p.add_argument("--seconds", type=float, default=480.0, help="when to leave off")
    p.add_argument("--runs", nargs="+", help="runs to do, in this order; all of the preset")
    p.add_argument("--results", type=Path, help="folder of the sweep; results/PRESET when absent")
    text = "keep a sweep's tables as reference results, and draw from them"
    kinds = verbs.add_parser("reference", help=text, description=text).add_subparsers(
        dest="kind", required=True
    )
    p = verb(kinds, "export", run_export, "copy a sweep's tables with their provenance")
    p.add_argument("--results", type=Path, help="folder of the sweep; results/PRESET when absent")
    p.add_argument("--output", type=Path, required=True)
    text = "judge the claims and draw the notebooks from a reference"
    p = verb(kinds, "render", run_render, text, preset=False)
    p.add_argument("--reference", type=Path, required=True)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--ledger", type=Path, default=CONFIG / "claims.yaml")
    p.add_argument("--published", type=Path, default=CONFIG / "published.csv")
    p.add_argument("--notebooks", type=Path, default=Path("notebooks"))
