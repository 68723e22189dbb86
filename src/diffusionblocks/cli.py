"""The command line: one verb per stage of the workflow. Rules and notebooks call nothing else.

A mistake that the user can mend is one line on standard error and exit code 2.
"""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from . import __version__
from .cluster.commands import add_cluster
from .config import Preset, RunConfig, load_preset
from .errors import UserError, of_the_machine
from .language_commands import add_language
from .memory.commands import add_memory
from .paper.commands import add_paper
from .verbs import Progress, ended, stoppable

CONFIG = Path("workflow/config")
PRESETS = CONFIG / "presets"


def _preset(arguments: argparse.Namespace) -> Preset:
    """The preset named on the command line, with its overrides."""
    name = arguments.preset
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    return load_preset(path, arguments.set or [])


def _run(arguments: argparse.Namespace) -> RunConfig:
    """The run named on the command line.

    Raises:
        UserError: its configuration is not the one the caller expects.
    """
    run = _preset(arguments).run(arguments.run)
    if arguments.config_hash not in (None, run.hash):
        raise UserError(
            f"run {run.name} has configuration {run.hash}, but the sweep was planned with "
            f"{arguments.config_hash}: the preset changed meanwhile; start snakemake again"
        )
    return run


def _data(a: argparse.Namespace) -> None:
    from .jobs import prepare_data

    prepare_data(_preset(a), a.output)


def _extractor(a: argparse.Namespace) -> None:
    from .jobs import train_extractor

    train_extractor(_preset(a), a.data, a.output)


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


def _sample(a: argparse.Namespace) -> int:
    sampling = _preset(a).sampling
    if a.sampling not in sampling:
        raise UserError(f"no sampling {a.sampling!r} in the preset; expected one of {[*sampling]}")
    from .jobs import sample_run

    progress = Progress(a.output.stem, "samples")
    return ended(sample_run(a.manifest, sampling[a.sampling], a.output, progress, a.stop_after))


def _floor(a: argparse.Namespace) -> None:
    from .jobs import score_floor

    score_floor(_preset(a), a.data, a.extractor_weights, a.cache, a.output)


def _evaluate(a: argparse.Namespace) -> None:
    paths = {}
    for item in a.samples:
        name, equals, path = item.partition("=")
        if not equals:
            raise UserError(f"--samples {item!r} is not of the form NAME=FILE; correct it")
        paths[name] = Path(path)
    from .jobs import score_run

    score_run(_preset(a), a.manifest, paths, a.data, a.extractor_weights, a.cache, a.output)


def _tables(a: argparse.Namespace) -> None:
    from .report.tables import write_tables

    write_tables(_preset(a), a.preset, a.results, a.output)


def _claims(a: argparse.Namespace) -> None:
    from .ledger import load_ledger
    from .report.verdicts import write_verdicts

    ledger = load_ledger(a.ledger)
    print(write_verdicts(ledger, a.tables, a.memory, a.language, a.published, a.output), end="")


def _site(a: argparse.Namespace) -> None:
    from .report.site import write_site

    write_site(_preset(a), a.preset, a.set or [], a.results, a.output)


def _compare(a: argparse.Namespace) -> None:
    from .report.compare import compare

    print(compare(a.a, a.b), end="")


def _status(a: argparse.Namespace) -> int:
    from .status import status

    preset = _preset(a)
    results = a.results or Path("results") / Path(a.preset).stem
    text, failed = status(preset, results, a.cores)
    print(text, end="")
    return int(failed)


def _runs(a: argparse.Namespace) -> None:
    for run in _preset(a).runs():
        print(run.name, run.hash, *run.parts)


def parser() -> argparse.ArgumentParser:
    """The argument parser of ``diffusionblocks``."""
    top = argparse.ArgumentParser(prog="diffusionblocks", description=__doc__)
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(dest="verb", required=True)

    def plain(
        name: str, handler: Callable[[argparse.Namespace], int | None], text: str, *paths: str
    ):
        p = verbs.add_parser(name, help=text, description=text)
        p.set_defaults(handler=handler)
        for path in paths:
            p.add_argument(f"--{path}", type=Path, required=True)
        return p

    def verb(
        name: str, handler: Callable[[argparse.Namespace], int | None], text: str, *paths: str
    ):
        p = plain(name, handler, text, *paths)
        p.add_argument("--preset", required=True, help="name or YAML file of a preset")
        p.add_argument("--set", nargs="*", metavar="KEY=VALUE", help="replace single settings")
        return p

    def of_run(p: argparse.ArgumentParser) -> argparse.ArgumentParser:
        p.add_argument("--run", required=True, help="name of a run of the preset's sweep")
        p.add_argument("--config-hash", help="refuse to work if the run's settings differ")
        return p

    def of_scores(p: argparse.ArgumentParser) -> argparse.ArgumentParser:
        p.add_argument("--extractor-weights", type=Path, help="weights of the extractor, if local")
        return p

    verb("runs", _runs, "list the runs of a preset: name, hash, parts")
    verb("data", _data, "decode the data set", "output")
    verb("extractor", _extractor, "train the digits CNN that scores digits", "data", "output")
    p = of_run(verb("train", _train, "train one part of a run", "data", "output", "state"))
    p.add_argument("--part", required=True, help="block0, block1, … or all")
    stoppable(p)
    of_run(verb("assemble", _assemble, "join a run's parts in a manifest", "parts", "output"))
    p = verb("sample", _sample, "draw samples from an assembled run", "manifest", "output")
    p.add_argument("--sampling", required=True, help="name of one of the preset's samplings")
    stoppable(p)
    of_scores(verb("floor", _floor, "score real held-out images", "data", "cache", "output"))
    p = verb("evaluate", _evaluate, "score a run", "manifest", "data", "cache", "output")
    of_scores(p).add_argument("--samples", nargs="+", required=True, metavar="NAME=FILE")
    verb("tables", _tables, "gather every run's results into tidy CSV", "results", "output")
    add_memory(verbs, _preset)
    add_language(verbs, _preset)
    add_cluster(verbs, _preset)
    add_paper(verbs, _preset)
    verb("site", _site, "write the report's pages", "results", "output")
    p = plain("claims", _claims, "judge the paper's claims from a sweep's tables", "tables")
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--ledger", type=Path, default=CONFIG / "claims.yaml")
    p.add_argument("--published", type=Path, default=CONFIG / "published.csv")
    p.add_argument("--memory", type=Path, help="folder of memory tables, if there are any")
    p.add_argument("--language", type=Path, help="folder of language tables, if there are any")
    p = plain("compare", _compare, "show what differs between two runs or configurations")
    for side in ("a", "b"):
        text = "folder of a run; without its -sSEED: the configuration, over all its seeds"
        p.add_argument(side, type=Path, metavar=side.upper(), help=text)
    p = verb("status", _status, "show a sweep's progress, time left and failures")
    p.add_argument("--results", type=Path, help="folder of the sweep; results/PRESET when absent")
    p.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="jobs side by side")
    return top


def _refuse(error: UserError) -> int:
    # The log may lie on the disk that is full: the exit code must come out all the same.
    with suppress(OSError):
        print(f"diffusionblocks: {error}", file=sys.stderr, flush=True)
    return 2


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.handler(arguments) or 0
    except UserError as error:
        return _refuse(error)
    except Exception as error:
        machine = of_the_machine(error)
        if machine is None:
            raise
        return _refuse(machine)


if __name__ == "__main__":
    sys.exit(main())
