"""Class-conditional image generation with a DiT (paper, Table 2)."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import NetworkConfig, NoiseConfig, RunConfig
from ..data.sources import open_source
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
        self.source = open_source(run, data, device)

    def description(self) -> dict[str, Any]:
        """What a network trained on this data must know to be built and used again."""
        channels, side, _ = self.source.shape
        found = {"image_size": side, "channels": channels, "classes": self.source.classes}
        return found if self.source.space is None else found | {"latents": self.source.space}

    def network(self, layers: int, *key: int | str) -> DiT:
        """A freshly initialised network of that many layers; weights depend on (seed, key)."""
        channels, side, _ = self.source.shape
        shape = dit_shape(self.run.network, side, channels, self.source.classes)
        network = DiT(shape, layers, self.run.training.activation_checkpointing)
        network.initialise(stream("cpu", self.run.seed, "initial weights", *key))
        return network.to(self.device)

    def batch(self, block: int, iteration: int) -> ImageBatch:
        """The batch of a block at one of its iterations, a function of (seed, block, iteration)."""
        training, seed = self.run.training, self.run.seed
        n = training.batch_size
        index = batch_indices(seed, block, iteration, n, self.source.count)
        generator = stream(self.device, seed, "batch", block, iteration)
        eps = torch.randn((n, *self.source.shape), generator=generator, device=self.device)
        u, drop = torch.rand(2, n, generator=generator, device=self.device)
        own = self.ranges[block]
        sigma = self.noise.sample(u, own.train_lo, own.train_hi)
        dropped = drop < training.label_dropout
        y, label = self.source.examples(index, generator)
        label = label.masked_fill(dropped, self.source.classes)
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
