"""The verb ``cluster`` of the command line: needs."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..config import Preset


def run_needs(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> None:
    """Verb ``cluster needs``."""
    from ..files import write_json
    from .needs import needs

    write_json(a.output, needs(read_preset(a)))


def add_cluster(verbs: Any, read_preset: Callable[[argparse.Namespace], Preset]) -> None:
    """Add the verb ``cluster`` to the command line.

    Args:
        verbs: what ``add_subparsers`` returned.
        read_preset: from the command line's namespace to its preset.
    """
    text = "plan a sweep on many GPUs, and what its jobs need"
    kinds = verbs.add_parser("cluster", help=text, description=text).add_subparsers(
        dest="kind", required=True
    )

    def kind(name: str, handler: Callable[..., None], text: str) -> argparse.ArgumentParser:
        p = kinds.add_parser(name, help=text, description=text)
        p.set_defaults(handler=partial(handler, read_preset=read_preset))
        return p

    p = kind("needs", run_needs, "memory that a scheduler should reserve for every job")
    p.add_argument("--preset", required=True, help="name or YAML file of a preset")
    p.add_argument("--set", nargs="*", metavar="KEY=VALUE", help="replace single settings")
    p.add_argument("--output", type=Path, required=True)
