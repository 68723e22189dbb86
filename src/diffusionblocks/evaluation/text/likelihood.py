"""Cross-entropy on held-out tokens, in nats a token: of next-token models and of denoisers.

For a next-token model this is the negative log-likelihood itself. For DiffusionBlocks it is that
of the first block at σ_max, where the noise hides the token and the clean past alone speaks
(method notes, "Language models in this framework"). Position 0 has no past and is never scored,
so that both kinds are averaged over the same tokens.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ...errors import UserError
from ...losses import next_token_nats
from ...randomness import stream
from .sequences import checked, finite

#: Tokens int64 [N, L] → ln p(token i | tokens before i) for i = 1 … L − 1, [N, L − 1].
LogProbs: TypeAlias = Callable[[Tensor], Tensor]
#: z [N, L, d] = clean + σ·ε, σ [N], clean [N, L, d] → logits [N, L, V]; position i may depend on
#: its own z and on the clean vectors before i.
Denoiser: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


def next_token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """ln p of every token but the first, where the logits at i are those of token i + 1.

    Args:
        logits: [N, L, V].
        tokens: int64 [N, L].

    Returns:
        float32 [N, L − 1].
    """
    return -next_token_nats(logits, tokens.to(logits.device))[:, :-1]


@torch.inference_mode()
def token_nats(log_probs: LogProbs, tokens: Tensor, batch_size: int = 32) -> Tensor:
    """−ln p of every token but the first, float64 [N, L − 1] on the CPU.

    Raises:
        UserError: the tokens cannot be scored, or the model gives no finite numbers.
    """
    tokens = checked(tokens)
    parts = [log_probs(batch).double().cpu() for batch in tokens.split(batch_size)]
    return -finite(torch.cat(parts), "the model")


def sequence_nats(log_probs: LogProbs, tokens: Tensor, batch_size: int = 32) -> Tensor:
    """Mean of :func:`token_nats` over each sequence, float64 [N]."""
    return token_nats(log_probs, tokens, batch_size).mean(1)


def noise_for(shape: tuple[int, int], first: int, count: int, *key: int | str) -> Tensor:
    """Standard normal noise of sequences first … first + count − 1, [count, *shape].

    Each sequence has a generator of its own, so a batch's size never changes its noise.
    """
    streams = (stream("cpu", *key, i) for i in range(first, first + count))
    return torch.stack([torch.randn(shape, generator=g) for g in streams])


def denoise(
    denoiser: Denoiser, table: Tensor, tokens: Tensor, sigma: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and squared error of a batch, means over positions 1 … L − 1.

    Args:
        table: embedding of every token [V, d].
        tokens: int64 [N, L].
        sigma: [N].
        eps: standard normal [N, L, d].

    Returns:
        −ln p(token | z_σ, clean past), nats [N], and ‖e − ê‖² [N], both float64 on the CPU;
        ê is the table's rows weighted by the softmax of the logits.

    Raises:
        UserError: the denoiser gives no finite cross-entropy.
    """
    tokens, sigma, eps = (t.to(table.device) for t in (tokens, sigma, eps))
    e = table[tokens]
    logits = denoiser(e + sigma.view(-1, 1, 1) * eps, sigma, e)[:, 1:].float()
    log_p = torch.log_softmax(logits, dim=-1)
    nats = finite(-log_p.gather(2, tokens[:, 1:, None]).squeeze(2), "the denoiser")
    e_hat = log_p.exp() @ table.float()
    squares = (e[:, 1:].float() - e_hat).square().sum(2)
    return nats.double().mean(1).cpu(), squares.double().mean(1).cpu()


@torch.inference_mode()
def denoising_nats(
    denoiser: Denoiser,
    table: Tensor,
    tokens: Tensor,
    sigma: float,
    seed: int,
    batch_size: int = 32,
) -> Tensor:
    """Cross-entropy of a denoiser at one noise level, nats a token; float64 [N], one a sequence.

    At σ_max this is the next-token cross-entropy of the first block.

    Args:
        table: embedding of every token [V, d].
        tokens: held-out tokens int64 [N, L].
        sigma: noise level.
        seed: decides the noise.

    Raises:
        UserError: σ is not positive, or the tokens cannot be scored.
    """
    if not sigma > 0:
        raise UserError(f"found noise level {sigma}; expected a positive one: correct sigma")
    tokens = checked(tokens, len(table))
    shape = (tokens.shape[1], table.shape[1])
    nats = []
    for first in range(0, len(tokens), batch_size):
        batch = tokens[first : first + batch_size]
        level = torch.full((len(batch),), float(sigma))
        eps = noise_for(shape, first, len(batch), seed, "cross-entropy", repr(float(sigma)))
        nats.append(denoise(denoiser, table, batch, level, eps)[0])
    return torch.cat(nats)
