"""Held-out denoising loss per band of σ: where on the noise axis a run is good or bad."""

from typing import Any

import torch

from ..blocks import Assembled
from ..config import EvaluationConfig
from ..data.images import ImageSplit
from ..data.latents import LatentSplit
from ..losses import denoising_loss
from ..partition import equal_mass, owner
from ..randomness import stream
from ..tasks.images import noise_law


@torch.inference_mode()
def validation_losses(
    model: Assembled, held_out: ImageSplit | LatentSplit, settings: EvaluationConfig
) -> list[dict[str, Any]]:
    """Mean w(σ)-weighted squared error per coordinate, per band of equal probability mass.

    The bands, images, noise levels and noise are the same for every run, so that differences
    between runs are differences between networks. Every example goes to the block that owns
    its σ, as in sampling.

    Returns:
        One row per band, from low to high noise: band, sigma_lo, sigma_hi, loss, samples.
    """
    law = noise_law(model.run.noise)
    edges = equal_mass(law, settings.validation_bands).tolist()
    n = min(settings.validation_samples, len(held_out.labels))
    y = held_out.clean(n)
    label = held_out.labels[:n]
    rows = []
    for band, (lo, hi) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        generator = stream("cpu", "validation", band)
        # Stratified: one level in each of n equal slices of the band.
        u = (torch.arange(n) + torch.rand(n, generator=generator)) / n
        sigma = law.sample(u[torch.randperm(n, generator=generator)], lo, hi)
        eps = torch.randn(y.shape, generator=generator)
        owners = torch.tensor([owner(model.ranges, s) for s in sigma.tolist()])
        total = 0.0
        for block in owners.unique().tolist():
            mine = owners == block
            tensors = (t[mine].to(model.device) for t in (y, sigma, eps, label))
            loss = denoising_loss(model.network(block), model.preconditioning, *tensors)
            total += float(loss.double().sum())
        rows.append({"band": band, "sigma_lo": lo, "sigma_hi": hi, "loss": total / n, "samples": n})
    return rows
