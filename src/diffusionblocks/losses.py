"""Training objectives, one function each; a loss is per example, so callers choose the mean."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .preconditioning import Preconditioning

#: A target that is no token and costs nothing.
IGNORED = -100


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
    return next_token_nats(logits, tokens).sum(1) / (tokens.shape[1] - 1)


def next_token_nats(logits: Tensor, tokens: Tensor) -> Tensor:
    """−ln p of the token that follows each position; 0 at the last one, which none follows.

    Args:
        logits: [N, T, vocabulary], those at position i for token i + 1.
        tokens: int64 [N, T].

    Returns:
        float32 [N, T].
    """
    # Told to ignore the last target, the loss reads the logits where they lie; a slice of them
    # would be copied.
    following = tokens.roll(-1, 1)
    following[:, -1] = IGNORED
    return token_nats(logits, following)


def token_nats(logits: Tensor, tokens: Tensor) -> Tensor:
    """−ln p of each token [N, T] under its own logits [N, T, vocabulary], float32 [N, T].

    One row a token: with the vocabulary second, as the loss wants batches of sequences, it would
    copy the logits twice.
    """
    rows = logits.float().flatten(0, 1)
    nats = F.cross_entropy(rows, tokens.flatten(), reduction="none", ignore_index=IGNORED)
    return nats.view(tokens.shape)


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
    nats = token_nats(logits, tokens).mean(1)
    return preconditioning.sigma_data**2 * preconditioning.weight(sigma) * nats
