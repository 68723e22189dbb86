"""From trained parts to one manifest: which file, layers and noise range every block has.

Reads and writes JSON and digests only, so that joining parts costs no start of PyTorch.
"""

from pathlib import Path
from typing import Any

from .config import RunConfig
from .errors import UserError
from .files import sha256, write_json
from .parts import part_of
from .records import FACTS, PART, RANGE, read_record


def write_part(path: Path, record: dict[str, Any]) -> None:
    """Describe a trained part beside its weights; written last, so it vouches for them."""
    write_json(path.with_suffix(".json"), record | {"file": path.name, "sha256": sha256(path)})


def _read_part(path: Path, run: RunConfig) -> dict[str, Any]:
    """A part's description, checked against its weights and the run that wants it."""
    record = read_record(path.with_suffix(".json"), PART | {run.task: FACTS[run.task]})
    if record["config_hash"] != run.hash:
        raise UserError(
            f"{path} was trained with configuration {record['config_hash']}, expected {run.hash}; "
            "delete it and train it again"
        )
    if not path.is_file() or sha256(path) != record["sha256"]:
        raise UserError(
            f"{path} is missing or differs from its digest; delete it and train it again"
        )
    if [block["block"] for block in record["blocks"]] != part_of(run, path.stem).blocks:
        raise UserError(
            f"{path.with_suffix('.json')} describes other blocks than {path.stem} trains; "
            "delete it and train it again"
        )
    return record


def stands(path: Path, run: RunConfig) -> bool:
    """Whether a part of a run is there, whole and from the run's settings."""
    try:
        _read_part(path, run)
    except UserError:
        return False
    return True


def assemble(run: RunConfig, folder: Path) -> dict[str, Any]:
    """Join the parts of a run into one manifest: which file, layers and noise range a block has.

    Args:
        folder: holds ``<part>.safetensors`` and ``<part>.json`` for every part of the run;
            the manifest names the files relative to it.

    Returns:
        The manifest, ready for JSON.

    Raises:
        UserError: a part is missing, damaged or from other settings.
    """
    blocks, described = [], None
    for name in run.parts:
        record = _read_part(folder / f"{name}.safetensors", run)
        described = record[run.task] if described is None else described
        if record[run.task] != described:
            raise UserError(
                f"{folder / name}.safetensors was trained on other data than {run.parts[0]}: "
                f"{record[run.task]} against {described}; delete it and train it again"
            )
        part = part_of(run, name)
        for block in record["blocks"]:
            own = part.layers[block["block"]] or range(part.depth)
            blocks.append(
                {
                    "block": block["block"],
                    "file": record["file"],
                    "sha256": record["sha256"],
                    "layers": [own.start, own.stop],
                    "depth": part.depth,
                    **{key: block[key] for key in RANGE},
                }
            )
    return {
        "run": run.identity(),
        "config": run.model_dump(mode="json"),
        "config_hash": run.hash,
        run.task: described,
        "blocks": blocks,
        "iterations": run.training.iterations,
        "layer_evaluations": layer_evaluations(run),
    }


def layer_evaluations(run: RunConfig) -> int:
    """Layer passes of a whole training run, forward, of images or of positions of text.

    K iterations of every block: Σ_b K·N·L_b = K·N·L with batch size N; for text times the
    positions of a sequence, clean and noisy ones alike. A clean position counts whole in a block's
    last layer too, which only reads it, so that blocks are never given more than end to end.
    """
    training = run.training
    return training.iterations * training.batch_size * run.positions * run.network.layers
