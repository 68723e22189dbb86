"""The denoisers that a manifest names, loaded and checked."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import RunConfig, validated
from .errors import UserError
from .files import sha256
from .networks.dit import DiT
from .partition import NoiseRange
from .preconditioning import Preconditioning
from .records import FACTS, MANIFEST, read_record
from .tasks.images import dit_shape
from .tensors import load_tensors


def _require_blocks(manifest: dict, run: RunConfig, path: Path) -> None:
    """Refuse a manifest whose blocks are not those of its own configuration."""
    depths = [len(layers) for layers in run.layer_ranges()]
    found = [b["layers"][-1] - b["layers"][0] if b["layers"] else 0 for b in manifest["blocks"]]
    deep = any(b["depth"] > run.network.layers for b in manifest["blocks"])
    side = manifest["images"]["image_size"]
    if found != depths or deep or side % run.network.patch or not side:
        raise UserError(
            f"{path}: its blocks of {found} layers are not the {depths} of its configuration; "
            "delete it and assemble the run again"
        )


def read_manifest(path: Path, task: str) -> dict[str, Any]:
    """A manifest of a task's run.

    Raises:
        UserError: the manifest is missing or not what assembling a run of that task writes.
    """
    return read_record(path, MANIFEST | {task: FACTS[task]})


def require_weights(manifest: dict[str, Any], path: Path) -> None:
    """Refuse a manifest whose files are not all there and whole.

    Raises:
        UserError: a file that it names is missing or damaged.
    """
    for b in manifest["blocks"]:
        weights = Path(path).parent / b["file"]
        if not weights.is_file() or sha256(weights) != b["sha256"]:
            raise UserError(
                f"{weights} is missing or differs from its digest in {path}; train it again"
            )


def ranges_of(manifest: dict[str, Any]) -> list[NoiseRange]:
    """The noise range of every block of a manifest."""
    return [
        NoiseRange(b["sigma_lo"], b["sigma_hi"], b["train_lo"], b["train_hi"])
        for b in manifest["blocks"]
    ]


class Assembled:
    """All blocks of a manifest, ready to denoise.

    Args:
        path: a manifest written by :func:`~diffusionblocks.manifest.assemble`.
        device: where the blocks are put.

    Raises:
        UserError: the manifest or a file that it names is missing or damaged.
    """

    def __init__(self, path: Path, device: torch.device):
        self.manifest = read_manifest(path, "images")
        self.run = validated(RunConfig, self.manifest["config"], Path(path).name)
        _require_blocks(self.manifest, self.run, path)
        require_weights(self.manifest, path)
        self.device = device
        self.ranges = ranges_of(self.manifest)
        self.preconditioning = Preconditioning(self.run.noise.sigma_data)
        images = self.manifest["images"]
        self._shape = dit_shape(
            self.run.network, images["image_size"], images["channels"], images["classes"]
        )
        self._folder = Path(path).parent
        self._load()

    def _load(self) -> None:
        """Put every file's network on the device."""
        self._networks: dict[str, DiT] = {}
        for b in self.manifest["blocks"]:
            if b["file"] not in self._networks:
                network = DiT(self._shape, b["depth"])
                weights = self._folder / b["file"]
                try:
                    network.load_state_dict(load_tensors(weights))
                except RuntimeError:
                    raise UserError(
                        f"{weights} holds other weights than its manifest says; train it again"
                    ) from None
                self._networks[b["file"]] = network.eval().to(self.device)

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
        b = self.manifest["blocks"][block]
        return partial(self._networks[b["file"]], layers=range(*b["layers"]))

    def denoise(self, block: int, label: Tensor, z: Tensor, sigma: float) -> Tensor:
        """D_block(z, σ, label) at one noise level for the whole batch."""
        sigmas = torch.full((len(z),), sigma, device=z.device)
        return self.preconditioning.denoise(self.network(block), z, sigmas, label)
