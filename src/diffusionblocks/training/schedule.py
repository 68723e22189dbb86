"""What changes from one update to the next, as pure functions of the iteration."""

import math

import torch

from ..randomness import stream


def learning_rate(
    iteration: int, iterations: int, base: float, warmup: int, schedule: str
) -> float:
    """Linear warm-up to ``base``, then constant or a cosine down to 0 at ``iterations``."""
    if iteration < warmup:
        return base * (iteration + 1) / warmup
    if schedule == "constant":
        return base
    progress = (iteration - warmup) / max(1, iterations - warmup)
    return base * (1 + math.cos(math.pi * progress)) / 2


def ema_decay(iteration: int, batch_size: int, halflife_samples: int) -> float:
    """Decay for one update of an average whose half-life is given in samples.

    Early on the half-life is at most a twentieth of the samples seen so far, so that the
    random initial weights are forgotten (Karras et al. 2022, EDM training code).
    """
    halflife = min(halflife_samples, max(iteration * batch_size, 1) / 20)
    return 0.5 ** (batch_size / halflife)


def interleaved_block(seed: int, step: int, B: int) -> tuple[int, int]:
    """Which block step ``step`` of an interleaved run updates, and that block's own iteration.

    Blocks come in shuffled rounds: every B steps visit every block once. Each step is uniform
    over the blocks, as in the paper, and all blocks get exactly the same number of updates,
    which keeps layer evaluations equal.

    Returns:
        (block, iteration of that block).
    """
    iteration, place = divmod(step, B)
    order = torch.randperm(B, generator=stream("cpu", seed, "round", iteration))
    return int(order[place]), iteration
