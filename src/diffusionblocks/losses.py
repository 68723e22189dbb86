"""Training objectives, one function each; a loss is per example, so callers choose the mean."""

from collections.abc import Callable

import torch.nn.functional as F
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


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of every token but the first given those before it: the autoregressive loss.

    Args:
        logits: [N, T, vocabulary], those at position i for token i + 1.
        tokens: int64 [N, T].

    Returns:
        [N], the mean over positions in nats, in float32.
    """
    loss = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), tokens[:, 1:], reduction="none")
    return loss.mean(1)


def token_denoising_loss(
    logits: Tensor, tokens: Tensor, sigma: Tensor, preconditioning: Preconditioning
) -> Tensor:
    """σ_d²·w(σ)·cross-entropy of clean tokens given noisy ones (method notes, equation 3).

    The factor σ_d² is the same for every σ, so it changes no balance; it makes the loss a plain
    cross-entropy at high noise, where a gradient's clip norm then means what it does end to end.

    Args:
        logits: [N, T, vocabulary].
        tokens: int64 [N, T].
        sigma: noise levels [N].

    Returns:
        [N], the mean over positions, in float32.
    """
    loss = F.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none").mean(1)
    return preconditioning.sigma_data**2 * preconditioning.weight(sigma) * loss
