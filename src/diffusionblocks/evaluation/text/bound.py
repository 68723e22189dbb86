"""The variational upper bound on the negative log-likelihood, as a curve over the cut σ₀.

For variance-exploding noise and any cut σ₀ (method notes, "Language models in this framework")

    −log p(x) ≤ ∫_{σ₀}^{σ_max} σ⁻³ E‖e(x) − ê(z_σ)‖² dσ + E[−log p(x | z_σ₀)] + ‖e‖²/(2σ_max²).

The integral runs over ln σ here: σ⁻³ dσ = σ⁻² d ln σ. The exact denoiser gives the same number at
every cut, the entropy (I-MMSE); so the excess over the cut at σ_max tells how far a model's blocks
are from calibrated. Everything is in nats a token, averaged over positions 1 … L − 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UserError
from ...randomness import stream
from .estimate import Estimate, mean_estimate
from .likelihood import Denoiser, denoise, denoising_nats, noise_for
from .sequences import checked


@dataclass(frozen=True)
class BoundSamples:
    """The bound's terms, one row a sequence and one column a cut, nats a token, float64.

    Attributes:
        cuts: σ₀, rising; the last is σ_max. [K]
        cross_entropy: of the denoiser at the cut, [N, K].
        integral: of the weighted squared error from the cut to σ_max, [N, K].
        prior: ‖e‖²/(2σ_max²), [N, 1].
    """

    cuts: Tensor
    cross_entropy: Tensor
    integral: Tensor
    prior: Tensor

    @property
    def nats(self) -> Tensor:
        """The bound, [N, K]."""
        return self.integral + self.cross_entropy + self.prior


def cut_grid(boundaries: Sequence[float], per_block: int) -> Tensor:
    """Cuts at the boundaries of the blocks and evenly in ln σ between them.

    No interval between two cuts then straddles blocks.

    Args:
        boundaries: σ_min … σ_max, rising, B + 1 of them.
        per_block: intervals that each block's range is divided into.

    Returns:
        float64 [B·per_block + 1], rising.

    Raises:
        UserError: the boundaries do not rise from above zero, or per_block is not positive.
    """
    if per_block < 1:
        raise UserError(f"found {per_block} cuts a block; expected at least 1: raise it")
    edges = _rising(torch.as_tensor(boundaries, dtype=torch.float64))
    share = torch.arange(per_block, dtype=torch.float64) / per_block
    log = edges.log()
    inside = (log[:-1, None] + share * log.diff()[:, None]).exp()
    inside[:, 0] = edges[:-1]  # exp(ln σ) may differ from σ in the last digit
    return torch.cat([inside.flatten(), edges[-1:]])


def _rising(cuts: Tensor) -> Tensor:
    if cuts.ndim != 1 or len(cuts) < 2 or not cuts[0] > 0 or not (cuts.diff() > 0).all():
        raise UserError(
            f"found noise levels {cuts.tolist()}; expected at least two, positive and rising: "
            "sort them and drop doubles"
        )
    return cuts


@torch.inference_mode()
def bound_samples(
    denoiser: Denoiser,
    table: Tensor,
    tokens: Tensor,
    cuts: Tensor,
    draws: int,
    seed: int,
    batch_size: int = 32,
) -> BoundSamples:
    """Estimate the bound's terms at every cut from the same sequences.

    Each interval between neighbouring cuts is divided into ``draws`` strata, even in ln σ; every
    sequence draws one noise level in each, independently of the others, so the errors of means
    over sequences are exact. Costs N·(K + (K − 1)·draws) passes of a sequence.

    Args:
        table: embedding of every token [V, d].
        tokens: held-out tokens int64 [N, L].
        cuts: σ₀, rising, ending in σ_max; [K].
        draws: noise levels an interval.
        seed: decides noise levels and noise.

    Raises:
        UserError: the cuts do not rise, there are no draws, or the tokens cannot be scored.
    """
    cuts = _rising(torch.as_tensor(cuts, dtype=torch.float64))
    if draws < 1:
        raise UserError(f"found {draws} draws an interval; expected at least 1: raise it")
    tokens = checked(tokens, len(table))
    cross_entropy = [
        denoising_nats(denoiser, table, tokens, s, seed, batch_size) for s in cuts.tolist()
    ]
    pieces = [
        _integral(denoiser, table, tokens, float(lo), float(hi), draws, seed, batch_size)
        for lo, hi in zip(cuts[:-1], cuts[1:], strict=True)
    ]
    pieces = torch.stack([*pieces, torch.zeros(len(tokens), dtype=torch.float64)], 1)
    integral = pieces.flip(1).cumsum(1).flip(1)  # from each cut up to σ_max
    squares = table.double().square().sum(1).cpu()[tokens[:, 1:]].mean(1, keepdim=True)
    prior = squares / (2 * cuts[-1] ** 2)
    return BoundSamples(cuts, torch.stack(cross_entropy, 1), integral, prior)


def _integral(denoiser, table, tokens, lo, hi, draws, seed, batch_size) -> Tensor:
    """∫ σ⁻² ‖e − ê‖² d ln σ over one interval, float64 [N]."""
    log_lo, width = math.log(lo), math.log(hi / lo)
    n, shape = len(tokens), (tokens.shape[1], table.shape[1])
    total = torch.zeros(n, dtype=torch.float64)
    for stratum in range(draws):
        key = (seed, "bound", repr(lo), repr(hi), draws, stratum)
        u = torch.rand(n, generator=stream("cpu", *key), dtype=torch.float64)
        sigma = (log_lo + width * (stratum + u) / draws).exp().clamp(lo, hi)
        for first in range(0, n, batch_size):
            here = slice(first, first + batch_size)
            eps = noise_for(shape, first, len(tokens[here]), *key)
            level = sigma[here].float()
            squares = denoise(denoiser, table, tokens[here], level, eps)[1]
            total[here] += squares / level.double() ** 2
    return total * width / draws


#: The bound at a cut, its two terms, and what it is above its value at σ_max.
CURVE_TERMS = ("bound", "cross_entropy", "integral", "excess")
CURVE_COLUMNS = (
    "sigma_0", *(f"{term}{kind}" for term in CURVE_TERMS for kind in ("", "_error")), "sequences"
)  # fmt: skip


def curve(samples: BoundSamples) -> list[dict[str, float]]:
    """One row a cut: means and standard errors of the bound, its terms and its excess.

    The excess is the bound minus its value at σ_max, paired by sequence: 0 at every cut for the
    exact denoiser.
    """
    nats = samples.nats
    terms = (nats, samples.cross_entropy, samples.integral, nats - nats[:, -1:])
    rows = []
    for k, sigma in enumerate(samples.cuts.tolist()):
        found = [mean_estimate(values[:, k]) for values in terms]
        numbers = [number for e in found for number in (e.value, e.error)]
        rows.append(dict(zip(CURVE_COLUMNS, (sigma, *numbers, len(nats)), strict=True)))
    return rows


def choose_cut(validation: BoundSamples) -> int:
    """The cut where the mean bound is least, to be chosen on validation text only."""
    return int(validation.nats.mean(0).argmin())


def quoted_bound(validation: BoundSamples, test: BoundSamples) -> tuple[float, Estimate]:
    """The cut chosen on validation text, and the bound that test text has there.

    Choosing the least of several noisy means on the text it is quoted on would flatter it.

    Raises:
        UserError: the two were made at different cuts.
    """
    if not torch.equal(validation.cuts, test.cuts):
        raise UserError(
            f"found validation cuts {validation.cuts.tolist()} and test cuts "
            f"{test.cuts.tolist()}; expected the same: make both with one grid"
        )
    k = choose_cut(validation)
    return float(test.cuts[k]), mean_estimate(test.nats[:, k])
