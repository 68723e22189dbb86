"""Training objectives, one function each; a loss is per example, so callers choose the mean."""

from collections.abc import Callable

from torch import Tensor

from .preconditioning import Preconditioning


def denoising_loss(
    network: Callable[..., Tensor],
    preconditioning: Preconditioning,
    y: Tensor,
    sigma: Tensor,
    eps: Tensor,
    *cond,
) -> Tensor:
    """w(σ)·‖D(y + σ·ε, σ, x) − y‖² per coordinate (method notes, equation 3).

    Args:
        network: F of the block that owns σ.
        y: clean data [N, …].
        sigma: noise levels [N].
        eps: standard normal noise shaped like y.
        cond: conditioning passed on to the network.

    Returns:
        [N], the mean over coordinates of the weighted squared error, in float32.
    """
    z = y + sigma.reshape(-1, *([1] * (y.ndim - 1))) * eps
    error = preconditioning.denoise(network, z, sigma, *cond).float() - y
    return preconditioning.weight(sigma) * error.square().flatten(1).mean(1)
