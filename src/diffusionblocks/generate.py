"""Images out of an assembled run."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .blocks import Assembled
from .config import SamplingConfig
from .data.images import to_uint8
from .noise import GRIDS
from .partition import owner
from .randomness import initial_noise
from .sampling import SOLVERS, guided, routed
from .tasks.images import noise_law


@torch.inference_mode()
def generate_images(
    model: Assembled,
    settings: SamplingConfig,
    first: int,
    count: int,
    seed: int,
    decode: Callable[[Tensor], Tensor] = to_uint8,
) -> tuple[Tensor, Tensor]:
    """Draw samples first … first + count − 1.

    The label of sample i is i mod classes and its noise depends on (seed, i), so a sample is
    the same whatever batch it is drawn in, up to rounding.

    Args:
        decode: from what the blocks denoise to images uint8.

    Returns:
        images uint8 [count, C, H, W] and labels int64 [count], on the CPU.
    """
    label = (torch.arange(first, first + count) % model.classes).to(model.device)
    no_label = torch.full_like(label, model.classes)
    blocks = range(len(model.ranges))

    def chain(condition: Tensor):
        return routed([partial(model.denoise, b, condition) for b in blocks], model.ranges)

    noise = noise_law(model.run.noise)
    sigmas = GRIDS[settings.grid](noise, settings.steps)
    z = noise.sigma_max * initial_noise(model.image_shape, first, count, seed).to(model.device)
    denoise = guided(chain(label), chain(no_label), settings.guidance)
    low = settings.precision == "bf16"
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=low):
        y = SOLVERS[settings.solver](denoise, z, sigmas)
    return decode(y).cpu(), label.cpu()


def layer_evaluations_per_trajectory(model: Assembled, settings: SamplingConfig) -> int:
    """Layer passes that one sample costs: the grid's levels times the layers of their owners."""
    depths = [b["layers"][1] - b["layers"][0] for b in model.manifest["blocks"]]
    evaluated: list[int] = []

    def denoise(z: Tensor, sigma: float) -> Tensor:
        evaluated.append(depths[owner(model.ranges, sigma)])
        return z

    sigmas = GRIDS[settings.grid](noise_law(model.run.noise), settings.steps)
    SOLVERS[settings.solver](denoise, torch.zeros(1), sigmas)
    return sum(evaluated) * (1 if settings.guidance == 1 else 2)
