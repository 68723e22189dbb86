"""Which block owns which noise range (method notes, equations 4 and 5).

Blocks are numbered in the order of the network's layers, which is the order in
which sampling visits them: block 0 owns the highest noise, block B − 1 the lowest.
To add a strategy write one function ``(noise, B) -> boundaries`` and name it in
:data:`STRATEGIES`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import TruncatedLogNormal


@dataclass(frozen=True)
class NoiseRange:
    """One block's share of the noise levels, in data units.

    ``sigma_lo, sigma_hi`` is what the block owns while sampling; ``train_lo, train_hi``
    is what it is trained on, wider by the overlap.
    """

    sigma_lo: float
    sigma_hi: float
    train_lo: float
    train_hi: float


def equal_mass(noise: TruncatedLogNormal, B: int) -> Tensor:
    """σ_b = exp(P_mean + P_std·Φ⁻¹(q_b)): every range holds 1/B of the density (equation 4)."""
    return noise.quantile(torch.linspace(0, 1, B + 1, dtype=torch.float64))


def uniform_sigma(noise: TruncatedLogNormal, B: int) -> Tensor:
    """Ranges of equal width in σ: how the paper's text words "uniform"."""
    return torch.linspace(noise.sigma_min, noise.sigma_max, B + 1, dtype=torch.float64)


def uniform_log_sigma(noise: TruncatedLogNormal, B: int) -> Tensor:
    """Ranges of equal width in ln σ: how the appendix of the paper's ablation words "uniform"."""
    ends = torch.tensor([noise.sigma_min, noise.sigma_max], dtype=torch.float64).log()
    return torch.linspace(float(ends[0]), float(ends[1]), B + 1, dtype=torch.float64).exp()


STRATEGIES: dict[str, Callable[[TruncatedLogNormal, int], Tensor]] = {
    "equal_mass": equal_mass,
    "uniform_sigma": uniform_sigma,
    "uniform_log_sigma": uniform_log_sigma,
}


def _widening(ratio: float, overlap: float) -> float:
    """α = (σ_hi/σ_lo)^γ; where it exceeds every float the training range is the whole one."""
    try:
        return ratio**overlap
    except OverflowError:
        return math.inf


def partition(
    strategy: str, noise: TruncatedLogNormal, B: int, overlap: float = 0.0
) -> list[NoiseRange]:
    """Cut [σ_min, σ_max] into B ranges and widen each one's training range by the overlap.

    Args:
        strategy: a key of :data:`STRATEGIES`.
        B: number of blocks, at least 1.
        overlap: γ ≥ 0; with α = (σ_hi/σ_lo)^γ a block trains on [σ_lo/α, α·σ_hi],
            clipped to [σ_min, σ_max] (equation 5).

    Returns:
        B ranges; entry 0 has the highest noise.
    """
    if overlap < 0:
        raise ValueError(f"overlap is {overlap}; expected 0 or more")
    edges = STRATEGIES[strategy](noise, B).tolist()
    # The outermost boundaries are σ_min and σ_max by definition, not up to rounding.
    edges[0], edges[-1] = noise.sigma_min, noise.sigma_max
    ranges = []
    for lo, hi in zip(edges[:-1], edges[1:], strict=True):
        alpha = _widening(hi / lo, overlap)
        train_lo, train_hi = max(lo / alpha, noise.sigma_min), min(hi * alpha, noise.sigma_max)
        ranges.append(NoiseRange(lo, hi, train_lo, train_hi))
    return ranges[::-1]


def owner(ranges: list[NoiseRange], sigma: float) -> int:
    """The block that runs at σ: the one with σ_lo < σ ≤ σ_hi.

    Levels outside [σ_min, σ_max] go to the nearest block.
    """
    for b, r in enumerate(ranges):
        if sigma > r.sigma_lo:
            return b
    return len(ranges) - 1
