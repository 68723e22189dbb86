"""An interpolated Kneser-Ney n-gram model: the floor that a trained network should beat.

Kneser and Ney (1995), interpolated as in Chen and Goodman (1998): with c(h, w) the count of token
w after context h, and a discount D a order,

    p(w | h) = max(c(h, w) − D, 0)/c(h) + D·N₁₊(h ·)/c(h) · p(w | h without its first token),

where orders below the highest count in how many different contexts an n-gram stands instead of
how often. The recursion ends in the uniform law, so no token has probability zero. Contexts are
found by binary search among numbered n-grams, so that everything is done for all positions at once.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from .sequences import checked

#: Contexts whose whole next-token law is held at once.
ROWS = 256


@dataclass(frozen=True)
class _Order:
    """The n-grams of one order; each has its number, its place in ``keys``.

    Attributes:
        keys: number of the n-gram without its last token, times the vocabulary, plus that
            token; rising.
        counts: occurrences at the highest order, different predecessors below it.
        totals: c(h) of each context, by its number one order below.
        types: N₁₊(h ·), likewise.
        discount: D.
    """

    keys: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    types: np.ndarray
    discount: float


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places of the wanted keys, −1 where there is none."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)


def _discount(counts: np.ndarray) -> float:
    """n₁/(n₁ + 2n₂) with n_k the n-grams counted k times; ½ where that is not in (0, 1)."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once and twice else 0.5


def _order(keys: np.ndarray, counts: np.ndarray, vocabulary: int, contexts: int) -> _Order:
    context = keys // vocabulary
    totals = np.bincount(context, weights=counts, minlength=contexts)
    types = np.bincount(context[counts > 0], minlength=contexts).astype(float)
    return _Order(keys, counts.astype(float), totals, types, _discount(counts))


class KneserNey:
    """A fitted model; a text's first tokens are predicted from the shorter contexts they have.

    Args:
        orders: unigrams first.
        vocabulary: number of tokens.
    """

    def __init__(self, orders: list[_Order], vocabulary: int):
        self.orders = orders
        self.vocabulary = vocabulary

    @classmethod
    def fit(cls, tokens: Tensor, order: int, vocabulary: int) -> "KneserNey":
        """Count the n-grams of a text.

        Args:
            tokens: training text, int64 [T], documents end to end with their end tokens.
            order: n, at least 1.
            vocabulary: number of tokens.

        Raises:
            UserError: the text is shorter than the order, or holds other tokens.
        """
        if order < 1:
            raise UserError(f"found n-grams of order {order}; expected at least 1: raise it")
        stream = checked(tokens.reshape(1, -1), vocabulary, least=order + 1)[0].numpy()
        if len(stream) * vocabulary >= 2**62:
            raise UserError(
                f"found {len(stream)} tokens of a vocabulary of {vocabulary}, too many to number; "
                "expected a smaller product: fit on a part"
            )
        found = []  # keys, occurrences and one place of every n-gram, order by order
        names = np.zeros(len(stream), dtype=np.int64)
        numbered = []
        for n in range(1, order + 1):
            # names[i]: number of the (n − 1)-gram that ends before token i + n − 1.
            keys = names[: len(stream) - n + 1] * vocabulary + stream[n - 1 :]
            unique, place, inverse, counts = np.unique(
                keys, return_index=True, return_inverse=True, return_counts=True
            )
            found.append((unique, counts, place))
            numbered.append(inverse)
            names = inverse
        orders = []
        for n in range(1, order + 1):
            unique, counts, _ = found[n - 1]
            if n < order:
                # The last n tokens of each (n + 1)-gram start one place after it does.
                suffix = numbered[n - 1][found[n][2] + 1]
                counts = np.bincount(suffix, minlength=len(unique))
            contexts = 1 if n == 1 else len(found[n - 2][0])
            orders.append(_order(unique, counts, vocabulary, contexts))
        return cls(orders, vocabulary)

    def log_probs(self, tokens: Tensor) -> Tensor:
        """ln p of every token but the first: int64 [N, L] → float64 [N, L − 1].

        Raises:
            UserError: a token is outside the vocabulary.
        """
        t = checked(tokens, self.vocabulary).numpy()
        p = np.full(t.shape, 1 / self.vocabulary)
        before = np.zeros(t.shape, dtype=np.int64)  # number of the context, −1 if never seen
        for order in self.orders:
            here = _find(order.keys, before * self.vocabulary + t)
            here = np.where(before < 0, -1, here)
            total = np.where(before < 0, 0, order.totals[before])
            count = np.where(here < 0, 0, order.counts[here])
            divisor = np.maximum(total, 1)
            types = np.where(before < 0, 0, order.types[before])
            kept = np.maximum(count - order.discount, 0) / divisor
            p = np.where(total > 0, kept + order.discount * types / divisor * p, p)
            # What ends at i is the next order's context of token i + 1; token 0 has none.
            before = np.concatenate([np.full((len(t), 1), -1), here[:, :-1]], axis=1)
        return torch.from_numpy(np.log(p[:, 1:]))

    def next_probs(self, tokens: Tensor) -> Tensor:
        """The law of the token after each sequence: int64 [N, L] → float64 [N, vocabulary]."""
        t = checked(tokens, self.vocabulary, least=1).numpy()
        n, v = len(t), self.vocabulary
        p = np.full((n, v), 1 / v)
        for k, order in enumerate(self.orders):
            context = self._context(t, k)
            total = np.where(context < 0, 0, order.totals[context])
            rows = np.flatnonzero(total > 0)
            c = context[rows]
            p[rows] *= (order.discount * order.types[c] / order.totals[c])[:, None]
            first = np.searchsorted(order.keys, c * v)
            many = np.searchsorted(order.keys, (c + 1) * v) - first
            # The children of each context, one after the other.
            within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
            child = np.repeat(first, many) + within
            row = np.repeat(rows, many)
            kept = np.maximum(order.counts[child] - order.discount, 0)
            p[row, order.keys[child] % v] += kept / np.repeat(order.totals[c], many)
        return torch.from_numpy(p)

    def _context(self, t: np.ndarray, length: int) -> np.ndarray:
        """Number of the last ``length`` tokens of each row, −1 where they were never seen."""
        if length > t.shape[1]:
            return np.full(len(t), -1)
        number = np.zeros(len(t), dtype=np.int64)
        for k in range(length):
            key = number * self.vocabulary + t[:, t.shape[1] - length + k]
            number = np.where(number < 0, -1, _find(self.orders[k].keys, key))
        return number

    def sample(self, prompts: Tensor, new_tokens: int, generator: torch.Generator) -> Tensor:
        """Continue prompts: int64 [N, P] → [N, P + new_tokens]; the generator is on the CPU."""
        tokens = checked(prompts, self.vocabulary, least=1)
        reach = max(1, len(self.orders) - 1)
        for _ in range(new_tokens):
            rows = tokens[:, -reach:].split(ROWS)
            drawn = [torch.multinomial(self.next_probs(r), 1, generator=generator) for r in rows]
            tokens = torch.cat([tokens, torch.cat(drawn)], 1)
        return tokens
