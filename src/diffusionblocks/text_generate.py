"""Continuations of prompts: one token after another, each a forward pass or a denoising chain."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .config import GenerationConfig
from .errors import UserError
from .networks.gpt import Modulation
from .noise import GRIDS
from .partition import owner
from .randomness import initial_noise, stream
from .text_model import TextModel


def choose(logits: Tensor, u: Tensor, temperature: float, top_p: float) -> Tensor:
    """Draw a token by inverting the distribution function over tokens in falling probability.

    Args:
        logits: [N, vocabulary].
        u: uniform numbers in [0, 1) [N], the only randomness.
        top_p: keep the fewest tokens that hold this probability (Holtzman et al. 2020).

    Returns:
        int64 [N].
    """
    p, order = torch.softmax(logits.double() / temperature, 1).sort(
        dim=1, descending=True, stable=True
    )
    below = p.cumsum(1) - p  # probability of likelier tokens; 0 for the likeliest
    p = p.masked_fill(below >= top_p, 0)
    cdf = p.cumsum(1)
    place = torch.searchsorted(cdf, (u.double() * cdf[:, -1])[:, None], right=True)
    last = (p > 0).sum(1, keepdim=True) - 1
    return order.gather(1, torch.minimum(place, last)).squeeze(1)


def levels_of(model: TextModel, settings: GenerationConfig) -> list[float]:
    """Noise levels of one token's denoising chain, falling, and then 0."""
    return GRIDS[settings.grid](model.noise, settings.steps).tolist()


def layer_passes_per_token(model: TextModel, settings: GenerationConfig) -> int:
    """Layers that one token passes with a cache: the chain, then reading it as clean everywhere."""
    depths = [len(block.layers) for block in model.blocks]
    if not model.denoises:
        return sum(depths)
    used = [owner(model.ranges, sigma) for sigma in levels_of(model, settings)[:-1]]
    return sum(depths[b] for b in used) + sum(depths[b] for b in set(used))


class _NextToken:
    """Last logits of the end-to-end model for growing sequences."""

    def __init__(self, model: TextModel, n: int, cached: bool):
        self.network = model.block(0)
        self.caches = self.network.caches(n) if cached else None

    def logits(self, tokens: Tensor, position: int) -> Tensor:
        """Logits [N, vocabulary] of the token at a position, given all before it."""
        start = self.caches[0].length if self.caches else 0
        return self.network(tokens[:, start:position], caches=self.caches)[:, -1]


class _Level(NamedTuple):
    """A noise level of a token's chain, and what it makes of the conditioning of every row.

    Attributes:
        block: the block that owns it.
        sigmas: sigma for every row, [N].
    """

    block: int
    sigma: float
    sigmas: Tensor
    modulation: Modulation


class _Denoising:
    """Last logits of a chain of blocks for growing sequences.

    Args:
        noise: standard normal [N, new tokens, width]; the only randomness.
        first: position of the first new token.
    """

    def __init__(self, model: TextModel, settings: GenerationConfig, noise: Tensor, first: int):
        self.model, self.noise, self.first = model, noise, first
        self.cached = settings.cache
        n, sigmas = len(noise), levels_of(model, settings)[:-1]
        self.levels = []
        for sigma in sigmas:
            b, column = owner(model.ranges, sigma), torch.full((n,), sigma, device=noise.device)
            c_noise = model.preconditioning.c_noise(column)
            self.levels.append(_Level(b, sigma, column, model.block(b).modulation(c_noise)))
        used = dict.fromkeys(level.block for level in self.levels)
        self.clean = {b: model.block(b).modulation(None) for b in used}
        self.caches = {b: model.blocks[b].caches(n) for b in used}
        if model.one_block:
            for caches in self.caches.values():
                for cache in caches:
                    cache.keys, cache.values = (
                        t.to(model.device) for t in (cache.keys, cache.values)
                    )

    def _past(self, b: int, tokens: Tensor, position: int) -> list:
        """The caches of a block, brought up to a position."""
        caches = self.caches[b]
        if not self.cached:
            for cache in caches:
                cache.length = 0
        start = caches[0].length
        if start < position:
            clean = self.model.embed(tokens[:, start:position])
            sigma_data = self.model.preconditioning.sigma_data
            self.model.block(b).read(clean / sigma_data, self.clean[b], caches)
        return caches

    def logits(self, tokens: Tensor, position: int) -> Tensor:
        """Logits [N, vocabulary] at the last noise level of the token at a position."""
        model, pre = self.model, self.model.preconditioning
        z = self.levels[0].sigma * self.noise[:, position - self.first]
        for level, following in zip(self.levels, [*self.levels[1:], None], strict=True):
            caches = self._past(level.block, tokens, position)
            network = model.block(level.block)
            f = partial(network.next, m=level.modulation, caches=caches)
            d = pre.denoise(lambda z, c_noise, f=f: f(z), z, level.sigmas)
            logits = network.logits(d / pre.sigma_data)
            if following is not None:
                # The posterior mean of the embedding: the denoiser that cross-entropy trains.
                mean = torch.softmax(logits, 1) @ model.table
                ratio = following.sigma / level.sigma
                z = ratio * z + (1 - ratio) * mean
        return logits


def check_prompts(prompts: Tensor, new_tokens: int, model: TextModel) -> None:
    """Refuse prompts that cannot be continued.

    Raises:
        UserError: they are empty, too long, or hold a token outside the vocabulary.
    """
    if prompts.numel() == 0:
        raise UserError("a prompt is empty; expected at least one token in each: write some text")
    if prompts.shape[1] + new_tokens > model.context_length:
        raise UserError(
            f"prompts of {prompts.shape[1]} tokens and {new_tokens} new ones exceed the model's "
            f"context_length {model.context_length}; shorten either"
        )
    low, high = int(prompts.min()), int(prompts.max())
    if low < 0 or high >= model.vocabulary:
        bad = low if low < 0 else high
        raise UserError(
            f"a prompt has token {bad}; expected 0 to {model.vocabulary - 1}: "
            "use the tokeniser that the model was trained with"
        )


@torch.inference_mode()
def continue_prompts(
    model: TextModel,
    prompts: Tensor,
    settings: GenerationConfig,
    first: int,
    seed: int,
    report: Callable[[int], None] = lambda tokens: None,
) -> Tensor:
    """Continue a batch of prompts of one length.

    The noise and choices of row i depend on (seed, first + i) only, so a continuation is the
    same whatever batch it is drawn in, up to rounding.

    Args:
        prompts: int64 [N, P].
        first: number of the first row.
        report: called with the tokens made so far.

    Returns:
        int64 [N, P + new_tokens] on the CPU.

    Raises:
        UserError: see :func:`check_prompts`.
    """
    check_prompts(prompts, settings.new_tokens, model)
    n, length = prompts.shape
    total = length + settings.new_tokens
    tokens = torch.zeros(n, total, dtype=torch.int64, device=model.device)
    tokens[:, :length] = prompts.to(model.device)
    rows = range(first, first + n)
    u = torch.stack(
        [torch.rand(settings.new_tokens, generator=stream("cpu", seed, "choice", i)) for i in rows]
    ).to(model.device)
    if model.denoises:
        shape = (settings.new_tokens, model.run.network.width)
        noise = initial_noise(shape, first, n, seed).to(model.device)
        source = _Denoising(model, settings, noise, length)
    else:
        source = _NextToken(model, n, settings.cache)
    for position in range(length, total):
        logits = source.logits(tokens, position)
        at = u[:, position - length]
        tokens[:, position] = choose(logits, at, settings.temperature, settings.top_p)
        report((position - length + 1) * n)
    return tokens.cpu()
