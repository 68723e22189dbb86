"""From trained parts to one sampler: the manifest, and the denoisers that it names."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import RunConfig
from .errors import UserError
from .files import read_json, sha256, write_json
from .networks.dit import DiT
from .partition import NoiseRange
from .preconditioning import Preconditioning
from .tasks.images import dit_shape, noise_ranges
from .tensors import load_tensors
from .training.loop import part_of


def write_part(path: Path, record: dict[str, Any]) -> None:
    """Describe a trained part beside its weights; written last, so it vouches for them."""
    write_json(path.with_suffix(".json"), record | {"file": path.name, "sha256": sha256(path)})


def _read_part(path: Path, run: RunConfig) -> dict[str, Any]:
    """A part's description, checked against its weights and the run that wants it."""
    record = read_json(path.with_suffix(".json"))
    if record["config_hash"] != run.hash:
        raise UserError(
            f"{path} was trained with configuration {record['config_hash']}, expected {run.hash}; "
            "delete it and train it again"
        )
    if not path.is_file() or sha256(path) != record["sha256"]:
        raise UserError(
            f"{path} is missing or differs from its digest; delete it and train it again"
        )
    return record


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
    ranges = noise_ranges(run)
    blocks = []
    for name in run.parts:
        record = _read_part(folder / f"{name}.safetensors", run)
        part = part_of(run, name)
        for block in part.blocks:
            own = part.layers[block] or range(part.depth)
            blocks.append(
                {
                    "block": block,
                    "file": record["file"],
                    "sha256": record["sha256"],
                    "layers": [own.start, own.stop],
                    "depth": part.depth,
                    **vars(ranges[block]),
                }
            )
    return {
        "run": run.identity(),
        "config": run.model_dump(mode="json"),
        "config_hash": run.hash,
        "images": record["images"],
        "blocks": blocks,
        "iterations": run.training.iterations,
        "layer_evaluations": layer_evaluations(run),
    }


def layer_evaluations(run: RunConfig) -> int:
    """Image × layer passes of a whole training run, forward; the same for every method at equal K.

    K iterations of every block: Σ_b K·N·L_b = K·N·L with batch size N.
    """
    return run.training.iterations * run.training.batch_size * run.network.layers


class Assembled:
    """All blocks of a manifest, ready to denoise.

    Args:
        path: a manifest written by :func:`assemble`.
        device: where the blocks are put.

    Raises:
        UserError: the manifest or a file that it names is missing or damaged.
    """

    def __init__(self, path: Path, device: torch.device):
        self.manifest = read_json(path)
        self.run = RunConfig.model_validate(self.manifest["config"])
        self.device = device
        self.ranges = [
            NoiseRange(b["sigma_lo"], b["sigma_hi"], b["train_lo"], b["train_hi"])
            for b in self.manifest["blocks"]
        ]
        self.preconditioning = Preconditioning(self.run.noise.sigma_data)
        images = self.manifest["images"]
        shape = dit_shape(
            self.run.network, images["image_size"], images["channels"], images["classes"]
        )
        networks: dict[str, DiT] = {}
        self._blocks: list[tuple[DiT, range]] = []
        for b in self.manifest["blocks"]:
            if b["file"] not in networks:
                weights = Path(path).parent / b["file"]
                if not weights.is_file() or sha256(weights) != b["sha256"]:
                    raise UserError(
                        f"{weights} is missing or differs from its digest in {path}; train it again"
                    )
                network = DiT(shape, b["depth"])
                network.load_state_dict(load_tensors(weights))
                networks[b["file"]] = network.eval().to(device)
            self._blocks.append((networks[b["file"]], range(*b["layers"])))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        images = self.manifest["images"]
        return images["channels"], images["image_size"], images["image_size"]

    @property
    def classes(self) -> int:
        """Number of classes; the label of that number means "no label"."""
        return self.manifest["images"]["classes"]

    def network(self, block: int):
        """F of one block, called as F(c_in·z, c_noise, label)."""
        network, layers = self._blocks[block]
        return partial(network, layers=layers)

    def denoise(self, block: int, label: Tensor, z: Tensor, sigma: float) -> Tensor:
        """D_block(z, σ, label) at one noise level for the whole batch."""
        sigmas = torch.full((len(z),), sigma, device=z.device)
        return self.preconditioning.denoise(self.network(block), z, sigmas, label)
