"""Class-conditional image generation with a DiT (paper, Table 2)."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import NetworkConfig, NoiseConfig, RunConfig
from ..data.images import ImageSplit, load_split, to_unit
from ..losses import denoising_loss
from ..networks.dit import DiT, DiTShape
from ..noise import TruncatedLogNormal
from ..partition import NoiseRange, partition
from ..preconditioning import Preconditioning
from ..randomness import batch_indices, stream


class ImageBatch(NamedTuple):
    """One batch of one block, on the device."""

    y: Tensor  # clean images [N, C, H, W] in −1 … 1
    sigma: Tensor  # [N]
    eps: Tensor  # shaped like y
    label: Tensor  # int64 [N]; dropped labels read "no label"


def noise_law(config: NoiseConfig) -> TruncatedLogNormal:
    """The density of σ that a configuration describes."""
    return TruncatedLogNormal(config.P_mean, config.P_std, config.sigma_min, config.sigma_max)


def noise_ranges(run: RunConfig) -> list[NoiseRange]:
    """The range of every block of a run; end to end is one block that owns them all."""
    strategy = run.partition or "equal_mass"
    return partition(strategy, noise_law(run.noise), run.blocks, run.overlap)


def dit_shape(network: NetworkConfig, image_size: int, channels: int, classes: int) -> DiTShape:
    """Sizes of the DiT for a configuration and a data set."""
    return DiTShape(
        image_size,
        channels,
        classes,
        network.width,
        network.heads,
        network.patch,
        network.mlp_ratio,
    )


class ImageTask:
    """What the training loop needs of the task, for one run.

    Args:
        run: the run's configuration.
        data: folder of a prepared data set.
        device: where batches are made.
    """

    def __init__(self, run: RunConfig, data: Path, device: torch.device):
        self.run = run
        self.device = device
        self.noise = noise_law(run.noise)
        self.ranges = noise_ranges(run)
        self.preconditioning = Preconditioning(run.noise.sigma_data)
        self.train: ImageSplit = load_split(data, "train")
        # A small set stays on the accelerator: no copy and no wait in a step.
        self.images = self.train.images.to(device)
        self.labels = self.train.labels.to(device)

    def description(self) -> dict[str, int]:
        """What a network trained on this data must know to be built again."""
        _, channels, side, _ = self.train.images.shape
        return {"image_size": side, "channels": channels, "classes": self.train.classes}

    def network(self, layers: int, *key: int | str) -> DiT:
        """A freshly initialised network of that many layers; weights depend on (seed, key)."""
        _, channels, side, _ = self.train.images.shape
        shape = dit_shape(self.run.network, side, channels, self.train.classes)
        network = DiT(shape, layers, self.run.training.activation_checkpointing)
        network.initialise(stream("cpu", self.run.seed, "initial weights", *key))
        return network.to(self.device)

    def batch(self, block: int, iteration: int) -> ImageBatch:
        """The batch of a block at one of its iterations, a function of (seed, block, iteration)."""
        training, seed = self.run.training, self.run.seed
        n = training.batch_size
        index = batch_indices(seed, block, iteration, n, len(self.labels)).to(self.device)
        generator = stream(self.device, seed, "batch", block, iteration)
        y = to_unit(self.images[index])
        eps = torch.randn(y.shape, generator=generator, device=self.device)
        u, drop = torch.rand(2, n, generator=generator, device=self.device)
        own = self.ranges[block]
        sigma = self.noise.sample(u, own.train_lo, own.train_hi)
        dropped = drop < training.label_dropout
        label = self.labels[index].masked_fill(dropped, self.train.classes)
        return ImageBatch(y, sigma, eps, label)

    def loss(self, network, batch: ImageBatch, layers: range | None) -> Tensor:
        """Weighted denoising loss [N] of a network, or of a slice of its layers."""
        precision = torch.bfloat16 if self.run.training.precision == "bf16" else torch.float32

        def forward(z: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
            with torch.autocast(
                self.device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16
            ):
                return network(z, c_noise, label, layers)

        return denoising_loss(
            forward, self.preconditioning, batch.y, batch.sigma, batch.eps, batch.label
        )
