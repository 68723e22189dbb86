"""The verb ``language`` of the command line: the stages of a preset's language half."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .config import GenerationConfig, LanguageConfig, Preset, TextRun
from .errors import UserError
from .verbs import Progress, ended, stoppable


def language_of(preset: Preset, name: str) -> LanguageConfig:
    """The language half of a preset.

    Raises:
        UserError: it has none.
    """
    if preset.language is None:
        raise UserError(f"preset {name} has no language section; expected one: add it")
    return preset.language


def _language(a: argparse.Namespace) -> LanguageConfig:
    return language_of(a.read_preset(a), a.preset)


def _run(a: argparse.Namespace) -> TextRun:
    """The language run named on the command line.

    Raises:
        UserError: its configuration is not the one the caller expects.
    """
    run = _language(a).run(a.run)
    if a.config_hash not in (None, run.hash):
        raise UserError(
            f"run {run.name} has configuration {run.hash}, but the sweep was planned with "
            f"{a.config_hash}: the preset changed meanwhile; start snakemake again"
        )
    return run


def _generation(a: argparse.Namespace, name: str) -> GenerationConfig:
    known = _language(a).generation
    if name not in known:
        raise UserError(f"no generation {name!r} in the preset; expected one of {[*known]}")
    return known[name]


def _runs(a: argparse.Namespace) -> None:
    for run in _language(a).runs():
        print(run.name, run.hash, *run.parts)


def _data(a: argparse.Namespace) -> None:
    language = _language(a)
    from .language_jobs import prepare_data

    prepare_data(language, a.output)


def _train(a: argparse.Namespace) -> int:
    run = _run(a)
    from .jobs import train_part

    progress = Progress(f"{run.name} {a.part}", "steps")
    return ended(train_part(run, a.part, a.data, a.output, a.state, progress, a.stop_after))


def _assemble(a: argparse.Namespace) -> None:
    run = _run(a)
    from .files import write_json
    from .manifest import assemble

    write_json(a.output, assemble(run, a.parts))


def _generate(a: argparse.Namespace) -> None:
    chosen = {name: _generation(a, name) for name in a.generation}
    from .language_jobs import generate_run

    for name, settings in chosen.items():
        output = a.output / f"samples-{name}.safetensors"
        generate_run(a.manifest, a.data, settings, output, Progress(name, "continuations"))


def _complete(a: argparse.Namespace) -> None:
    settings = _generation(a, a.generation)
    changed = {"new_tokens": a.new_tokens, "steps": a.steps, "temperature": a.temperature}
    changed |= {"top_p": a.top_p, "residency": a.residency}
    changed = {key: value for key, value in changed.items() if value is not None}
    from .config import validated
    from .language_jobs import complete

    settings = validated(GenerationConfig, settings.model_dump() | changed, "language complete")
    for text in complete(a.manifest, a.data, a.prompt, settings, a.seed):
        print(text)


def _floor(a: argparse.Namespace) -> None:
    language = _language(a)
    from .evaluation.text_scoring import score_floor

    score_floor(language, a.data, a.judge, a.output)


def _score(a: argparse.Namespace) -> None:
    language = _language(a)
    samples = dict(item.split("=", 1) for item in a.samples)
    paths = {name: Path(path) for name, path in samples.items()}
    from .evaluation.text_scoring import score_run

    score_run(language, a.manifest, paths, a.data, a.judge, a.output)


def _tables(a: argparse.Namespace) -> None:
    language, description = _language(a), a.read_preset(a).description
    from .report.language_tables import write_language_tables

    write_language_tables(language, a.preset, description, a.results, a.output)


def add_language(verbs: Any, read_preset: Callable[[argparse.Namespace], Preset]) -> None:
    """Add the verb ``language`` to the command line.

    Args:
        verbs: what ``add_subparsers`` returned.
        read_preset: from the command line's namespace to its preset.
    """
    text = "train, sample and score language models"
    kinds = verbs.add_parser("language", help=text, description=text).add_subparsers(
        dest="kind", required=True
    )

    def kind(name: str, handler: Callable[..., None], text: str, *paths: str):
        p = kinds.add_parser(name, help=text, description=text)
        p.set_defaults(handler=handler, read_preset=read_preset)
        p.add_argument("--preset", required=True, help="name or YAML file of a preset")
        p.add_argument("--set", nargs="*", metavar="KEY=VALUE", help="replace single settings")
        for path in paths:
            p.add_argument(f"--{path}", type=Path, required=True)
        return p

    def of_run(p: argparse.ArgumentParser) -> argparse.ArgumentParser:
        p.add_argument("--run", required=True, help="name of a run of the language sweep")
        p.add_argument("--config-hash", help="refuse to work if the run's settings differ")
        return p

    def of_scores(p: argparse.ArgumentParser) -> argparse.ArgumentParser:
        p.add_argument("--judge", type=Path, help="manifest of the judge, if the DAG trains one")
        return p

    kind("runs", _runs, "list the language runs of a preset: name, hash, parts")
    kind("data", _data, "tokenise the text", "output")
    p = of_run(kind("train", _train, "train one part of a run", "data", "output", "state"))
    p.add_argument("--part", required=True, help="block0, block1, … or all")
    stoppable(p)
    of_run(kind("assemble", _assemble, "join a run's parts in a manifest", "parts", "output"))
    p = kind("generate", _generate, "continue held-out prompts", "manifest", "data", "output")
    p.add_argument("--generation", required=True, nargs="+", help="some of the preset's by name")
    p = kind("complete", _complete, "continue your own prompts", "manifest", "data")
    p.add_argument("--generation", required=True, help="name of one of the preset's generations")
    p.add_argument("--prompt", nargs="+", required=True, metavar="TEXT", help="one or several")
    p.add_argument("--new-tokens", type=int, help="how many to add")
    p.add_argument("--steps", type=int, help="noise levels of a token's denoising chain")
    p.add_argument("--temperature", type=float, help="of the last logits")
    p.add_argument("--top-p", type=float, help="probability that is kept of the last logits")
    p.add_argument("--residency", choices=["all", "one_block"], help="blocks on the device")
    p.add_argument("--seed", type=int, default=0)
    of_scores(kind("floor", _floor, "score real held-out text", "data", "output"))
    p = kind("score", _score, "score a run", "manifest", "data", "output")
    of_scores(p).add_argument("--samples", nargs="+", required=True, metavar="NAME=FILE")
    kind("tables", _tables, "gather the language results into tidy CSV", "results", "output")
