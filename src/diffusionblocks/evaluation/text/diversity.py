"""How varied a set of continuations is: distinct n-grams, repetition and n-gram entropy.

Generative perplexity rewards text that repeats itself; these numbers show when it does. All
depend on how many continuations of what length are counted, so only sets of one size compare.
"""

import torch
from torch import Tensor

from .sequences import checked

#: Orders of n-grams that are counted.
ORDERS = (1, 2, 3)
#: A token counts as repeated when its n-gram of this order stood in its own text before.
REPEATED_ORDER = 4


def ngrams(tokens: Tensor, n: int) -> Tensor:
    """A number for each n-gram, equal where the n-grams are; int64 [N, L − n + 1].

    Args:
        tokens: int64 [N, L], L ≥ n.
    """
    _, codes = torch.unique(tokens, return_inverse=True)
    names, length = codes, tokens.shape[1]
    for k in range(1, n):
        # Renumbered at each order, so that products never overflow.
        pairs = names[:, : length - k] * (int(codes.max()) + 1) + codes[:, k:]
        _, names = torch.unique(pairs, return_inverse=True)
    return names


def distinct(tokens: Tensor, n: int) -> float:
    """Different n-grams of all continuations together over all their n-grams (Li et al. 2016)."""
    names = ngrams(tokens, n)
    return (int(names.max()) + 1) / names.numel()


def ngram_entropy(tokens: Tensor, n: int) -> float:
    """Entropy of the n-gram frequencies of all continuations together, nats (plug-in)."""
    counts = torch.bincount(ngrams(tokens, n).flatten()).double()
    p = counts / counts.sum()
    return float(-(p * p.log()).sum())


def repetition(tokens: Tensor, n: int = REPEATED_ORDER) -> float:
    """Share of n-grams that their own continuation has shown before; 0 when none repeats."""
    names = ngrams(tokens, n).sort(dim=1).values
    repeated = (names.diff(dim=1) == 0).sum()
    return float(repeated) / names.numel()


def diversity(continuations: Tensor) -> dict[str, float]:
    """Every number of this module for one set of continuations, prompts left out.

    Args:
        continuations: int64 [N, C], C ≥ 4.

    Returns:
        distinct_1 … 3 and repetition (shares), ngram_entropy_1 … 3 (nats).

    Raises:
        UserError: the continuations are too short, or no tokens.
    """
    tokens = checked(continuations, least=REPEATED_ORDER)
    scores = {f"distinct_{n}": distinct(tokens, n) for n in ORDERS}
    scores |= {f"ngram_entropy_{n}": ngram_entropy(tokens, n) for n in ORDERS}
    scores["repetition"] = repetition(tokens)
    return scores
