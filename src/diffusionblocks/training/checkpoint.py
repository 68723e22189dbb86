"""Resumable state: safetensors plus a JSON, each written whole, the JSON last.

``state.json`` names the tensor file of the newest whole checkpoint, its digest, the step and
the configuration's hash. Until it is replaced the previous checkpoint stands, so a job killed
at any moment finds either the old state or the new one.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..files import delete, sha256, write_json
from ..records import STATE, read_record
from ..tensors import load_tensors, save_tensors
from .step import TrainState

#: The tensors that AdamW keeps for every parameter.
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Resumed:
    """Where a job goes on: steps done, history [steps, 2], seconds spent so far."""

    step: int
    history: Tensor
    seconds: float


def _tensors(state: TrainState) -> dict[str, Tensor]:
    """Every tensor that the next step depends on, by name."""
    tensors = {f"ema.{name}": value for name, value in state.ema.items()}
    for name, parameter in state.network.named_parameters():
        tensors[f"parameter.{name}"] = parameter.detach()
        for key, value in state.optimizer.moments.get(name, {}).items():
            tensors[f"{key}.{name}"] = value
    return tensors


def save_checkpoint(
    folder: Path, state: TrainState, step: int, history: Tensor, seconds: float, config_hash: str
) -> None:
    """Write a checkpoint whole, point state.json at it, then drop older ones."""
    path = folder / f"step-{step:09d}.safetensors"
    save_tensors(path, _tensors(state) | {"history": history}, {"config_hash": config_hash})
    record = {
        "step": step,
        "config_hash": config_hash,
        "file": path.name,
        "sha256": sha256(path),
        "seconds": seconds,
    }
    write_json(folder / "state.json", record)
    for old in folder.iterdir():
        if old.name not in (path.name, "state.json"):
            delete(old)


def load_checkpoint(folder: Path, state: TrainState, config_hash: str) -> Resumed | None:
    """Restore the newest checkpoint into ``state``; None where there is none.

    Raises:
        UserError: the checkpoint belongs to other settings, is truncated or was altered.
    """
    if not (folder / "state.json").exists():
        return None
    record = read_record(folder / "state.json", STATE)
    path = folder / record["file"]
    mend = f"delete {folder} to start again"
    if record["config_hash"] != config_hash:
        raise UserError(
            f"checkpoint {path} was made with configuration {record['config_hash']}, "
            f"expected {config_hash}; {mend}"
        )
    if not path.is_file() or sha256(path) != record["sha256"]:
        raise UserError(f"checkpoint {path} is missing or differs from its digest; {mend}")
    device = next(iter(state.ema.values())).device
    tensors = {name: value.to(device) for name, value in load_tensors(path).items()}
    with torch.no_grad():
        for name, parameter in state.network.named_parameters():
            parameter.copy_(tensors[f"parameter.{name}"])
            state.ema[name].copy_(tensors[f"ema.{name}"])
            # A parameter that has had no update yet has no moments.
            if f"exp_avg.{name}" in tensors:
                state.optimizer.moments[name] = {k: tensors[f"{k}.{name}"] for k in MOMENTS}
    return Resumed(record["step"], tensors["history"].cpu(), record["seconds"])
