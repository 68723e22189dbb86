"""Where a training job's clean images come from: pixels or latents, on the device or the host."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import LATENT_SETS, RunConfig
from ..devices import lies_on_device, upload
from .images import ImageSplit, load_split, to_unit
from .latents import LatentSplit, channels, load_latents, scaled


class _Kept:
    """Arrays by number of the example, kept on the device or taken from the host one batch a time.

    Args:
        arrays: equally long, on the host.
        where: ``compute.data``.
    """

    def __init__(self, arrays: tuple[Tensor, ...], where: str, device: torch.device):
        nbytes = sum(array.nbytes for array in arrays)
        self._device = device
        self._resident = lies_on_device(where, nbytes, device)
        self._arrays = tuple(a.to(device) for a in arrays) if self._resident else arrays

    def rows(self, index: Tensor) -> list[Tensor]:
        """The rows of every array at these numbers (int64 on the host), on the device."""
        if self._resident:
            index = upload(index, self._device)
            return [array[index] for array in self._arrays]
        return [upload(array[index], self._device) for array in self._arrays]


class PixelSource:
    """Images in −1 … 1.

    Attributes:
        count: number of images.
        shape: (C, H, W) of an image.
        classes: number of classes.
        space: nothing that sampling would have to know.
    """

    space: dict[str, Any] | None = None

    def __init__(self, split: ImageSplit, where: str, device: torch.device):
        self.count = len(split.labels)
        self.shape = tuple(split.images.shape[1:])
        self.classes = split.classes
        self._kept = _Kept((split.images, split.labels), where, device)

    def examples(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clean images float32 [N, C, H, W] and labels int64 [N] at these numbers."""
        images, label = self._kept.rows(index)
        return to_unit(images), label


class LatentSource:
    """Latents with mean 0 and deviation σ_data, drawn anew at every visit; see PixelSource."""

    def __init__(self, split: LatentSplit, where: str, device: torch.device):
        _, moments, height, width = split.moments.shape
        self.count = len(split.labels)
        self.shape = (moments // 2, height, width)
        self.classes = split.classes
        self.space = split.space
        self._sigma_data = split.sigma_data
        self._channels = channels(split.space, device)
        self._kept = _Kept((split.moments, split.labels), where, device)

    def examples(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clean latents float32 [N, C, H, W] and labels int64 [N] at these numbers."""
        moments, label = self._kept.rows(index)
        mean, std = moments.float().chunk(2, dim=1)
        xi = torch.randn(mean.shape, generator=generator, device=mean.device)
        return scaled(mean + std * xi, *self._channels, self._sigma_data), label


def load_examples(run: RunConfig, data: Path, split: str) -> ImageSplit | LatentSplit:
    """What the networks of a run see of a split.

    Raises:
        UserError: the prepared data is missing or damaged.
    """
    if run.data.name in LATENT_SETS:
        return load_latents(data, split, run.noise.sigma_data)
    return load_split(data, split)


def open_source(run: RunConfig, data: Path, device: torch.device) -> PixelSource | LatentSource:
    """The training images of a run."""
    split = load_examples(run, data, "train")
    kind = LatentSource if isinstance(split, LatentSplit) else PixelSource
    return kind(split, run.compute.data, device)
