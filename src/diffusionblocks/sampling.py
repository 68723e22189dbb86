"""Samplers of the probability-flow ODE dz/dσ = (z − D(z, σ))/σ (method notes, equations 1 and 6).

The paper prints the Euler update with the opposite sign (its equations 3 and 4), under which
noise would grow; the sign here is EDM's. A sampler knows nothing about blocks: it calls one
``denoise(z, sigma)``, and :func:`routed` sends every level to the block that owns it.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from .partition import NoiseRange, owner

#: (z [N, …], σ as a host number) → D(z, σ), shaped like z.
Denoiser = Callable[[Tensor, float], Tensor]


def routed(denoisers: Sequence[Denoiser], ranges: list[NoiseRange]) -> Denoiser:
    """One denoiser out of B: at each level only the block that owns σ runs."""
    return lambda z, sigma: denoisers[owner(ranges, sigma)](z, sigma)


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance: D_u + scale·(D_c − D_u); scale 1 is plain conditional sampling."""
    if scale == 1:
        return conditional

    def denoise(z: Tensor, sigma: float) -> Tensor:
        d_u = unconditional(z, sigma)
        return d_u + scale * (conditional(z, sigma) - d_u)

    return denoise


def euler(denoise: Denoiser, z: Tensor, sigmas: Tensor) -> Tensor:
    """First order: z' = z + (σ' − σ)·(z − D)/σ = (σ'/σ)·z + (1 − σ'/σ)·D.

    Args:
        z: start [N, …], drawn at σ = sigmas[0].
        sigmas: falling noise levels [T + 1]; the last may be 0. Costs T denoiser calls.

    Returns:
        z at sigmas[-1].
    """
    levels = sigmas.tolist()
    for sigma, sigma_next in zip(levels[:-1], levels[1:], strict=True):
        ratio = sigma_next / sigma
        z = ratio * z + (1 - ratio) * denoise(z, sigma)
    return z


def heun(denoise: Denoiser, z: Tensor, sigmas: Tensor) -> Tensor:
    """Second order (Karras et al. 2022, algorithm 1 without churn); arguments as :func:`euler`.

    Costs 2T − 1 denoiser calls when the grid ends at 0, where the correction is undefined.
    """
    levels = sigmas.tolist()
    for sigma, sigma_next in zip(levels[:-1], levels[1:], strict=True):
        slope = (z - denoise(z, sigma)) / sigma
        z_next = z + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope_next = (z_next - denoise(z_next, sigma_next)) / sigma_next
            z_next = z + (sigma_next - sigma) * (slope + slope_next) / 2
        z = z_next
    return z


SOLVERS = {"euler": euler, "heun": heun}
