"""Two runs, or two configurations over their seeds, side by side: settings and every metric."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..records import count, number, plain_name, read_record
from .statistics import signed, t_interval

#: What is read of a run's files.
MANIFEST = {"run": {"seed": count}, "config": dict, "blocks": [{"file": plain_name}]}
SCORES = {
    "scores": [{"metric": str, "split": str, "sampling": str, "value": number}],
    "validation": [{"loss": number}],
}
SPEED = {"trajectories_per_second": number}

Numbers = dict[tuple[str, ...], dict[int, float]]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    pairs: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            pairs[f"{prefix}{key}"] = value
    return pairs


def runs_of(path: Path) -> list[Path]:
    """The folders that a name stands for: one run, or all seeds of a configuration.

    Args:
        path: a run's folder, or that folder's name without its seed (``…/end_to_end``).

    Raises:
        UserError: there is no such finished run.
    """
    if (path / "manifest.json").is_file():
        return [path]
    seeds = [
        folder
        for folder in path.parent.glob(f"{path.name}-s*")
        if re.fullmatch(re.escape(path.name) + r"-s\d+", folder.name)
        and (folder / "manifest.json").is_file()
    ]
    if not seeds:
        known = sorted({re.sub(r"-s\d+$", "", p.parent.name) for p in _manifests(path.parent)})
        raise UserError(
            f"{path} is no finished run and no configuration of one; expected one of "
            f"{', '.join(known) or 'the folders under results/<preset>/runs'}"
        )
    return sorted(seeds, key=lambda folder: int(folder.name.rpartition("-s")[2]))


def _manifests(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/manifest.json"))


def numbers(runs: list[Path]) -> Numbers:
    """Every metric of some runs: (metric, split, sampling) → seed → value."""
    found: Numbers = {}
    for folder in runs:
        manifest = read_record(folder / "manifest.json", MANIFEST)
        seed = manifest["run"]["seed"]
        scores = read_record(folder / "scores.json", SCORES)
        for row in scores["scores"]:
            key = (row["metric"], row["split"], row["sampling"])
            found.setdefault(key, {})[seed] = row["value"]
        losses = [row["loss"] for row in scores["validation"]]
        found.setdefault(("validation_loss", "test", ""), {})[seed] = float(np.mean(losses))
        parts = sorted({block["file"] for block in manifest["blocks"]})
        trained = [(folder / part).with_suffix(".json") for part in parts]
        seconds = [read_record(path, {"seconds": number})["seconds"] for path in trained]
        found.setdefault(("training_seconds", "", ""), {})[seed] = sum(seconds)
        for path in sorted(folder.glob("samples-*.json")):
            key = ("trajectories_per_second", "", path.stem.removeprefix("samples-"))
            found.setdefault(key, {})[seed] = read_record(path, SPEED)["trajectories_per_second"]
    return found


def _difference(a: dict[int, float], b: dict[int, float]) -> tuple[str, str, str]:
    """A − B paired by seed with its 95 % t interval, and on how many pairs."""
    shared = sorted(set(a) & set(b))
    if len(shared) < 2:
        one = len(a) == len(b) == 1
        text = signed(next(iter(a.values())) - next(iter(b.values()))) if one else ""
        return text, "", "one run each" if one else "fewer than two seeds in common"
    interval = t_interval([a[seed] - b[seed] for seed in shared])
    bounds = f"{signed(interval.low)} to {signed(interval.high)}"
    return signed(interval.mean), bounds, f"{len(shared)} seeds"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def compare(a: Path, b: Path) -> str:
    """What differs between two runs or configurations, as text.

    Raises:
        UserError: one of them does not exist, or is not scored yet.
    """
    sides = [runs_of(path) for path in (a, b)]
    configs = [flat(read_record(runs[0] / "manifest.json", MANIFEST)["config"]) for runs in sides]
    if any(len(runs) > 1 for runs in sides):
        for config in configs:
            config.pop("seed")
    keys = [k for k in {**configs[0], **configs[1]} if configs[0].get(k) != configs[1].get(k)]
    settings = [(key, *(str(c.get(key, "absent")) for c in configs)) for key in keys]
    lines = [f"A  {a}: {len(sides[0])} run(s)", f"B  {b}: {len(sides[1])} run(s)", ""]
    lines += _aligned([("setting", "A", "B"), *settings]) if settings else ["The settings agree."]
    left, right = (numbers(runs) for runs in sides)
    rows = [("metric", "split", "sampling", "A", "B", "A − B", "95 % interval", "paired on")]
    for key in {**left, **right}:
        values = [side.get(key, {}) for side in (left, right)]
        means = [f"{np.mean(list(v.values())):.4g}" if v else "" for v in values]
        change = _difference(*values) if all(values) else ("", "", "")
        rows.append((*key, *means, *change))
    return "\n".join([*lines, "", *_aligned(rows)]) + "\n"
