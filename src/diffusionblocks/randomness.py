"""All randomness as a pure function of names and numbers, never of what ran before."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def stream(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A generator that depends on the key alone, for instance (seed, "noise", block, iteration).

    The key is hashed because PyTorch's CPU generator reads 32 bits of its seed only:
    packing numbers side by side would drop some of them.
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, block: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=stream("cpu", seed, "order", block, epoch))


def batch_indices(seed: int, block: int, iteration: int, batch_size: int, n: int) -> Tensor:
    """Which of n examples a block sees at an iteration: shuffled epochs laid end to end.

    Returns:
        int64 [batch_size]; a batch may straddle epochs, and no example is ever skipped.
    """
    first = iteration * batch_size
    pieces = []
    while batch_size > 0:
        epoch, start = divmod(first, n)
        piece = _epoch_order(seed, block, epoch, n)[start : start + batch_size]
        pieces.append(piece)
        first, batch_size = first + len(piece), batch_size - len(piece)
    return torch.cat(pieces)


def initial_noise(shape: Sequence[int], first: int, count: int, seed: int) -> Tensor:
    """Standard normal noise for samples first … first + count − 1.

    Every sample has a counter-based generator of its own (Philox, 128-bit key), so its noise
    depends on (seed, number of the sample) and not on the batch it is drawn in.

    Returns:
        float32 [count, *shape] on the CPU.
    """
    draws = [
        np.random.Generator(np.random.Philox(key=[seed, i])).standard_normal(shape, np.float32)
        for i in range(first, first + count)
    ]
    return torch.from_numpy(np.stack(draws))
