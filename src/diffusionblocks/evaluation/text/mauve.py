"""MAUVE (Pillutla et al. 2021) of features, repeated over k-means seeds, through mauve-text.

MAUVE clusters both sets of features together and compares the two histograms over clusters. The
clustering starts at random, so one number alone hides how far it would move with another seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import UserError

#: Fewest texts of a set: mauve-text makes a cluster of every ten, and two at least.
LEAST = 20


@dataclass(frozen=True)
class Mauve:
    """MAUVE of two sets of texts under several k-means seeds.

    Attributes:
        values: one a seed, in 0 … 1; 1 is best.
        buckets: clusters that were compared.
    """

    values: tuple[float, ...]
    buckets: int

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """Standard deviation over seeds: of the clustering only, not of the texts."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan

    @property
    def error(self) -> float:
        """Standard error of the mean over seeds."""
        return self.spread / math.sqrt(len(self.values))


def mauve_scores(p: np.ndarray, q: np.ndarray, seeds: Sequence[int], scaling: float = 5.0) -> Mauve:
    """MAUVE of two sets of features under every seed.

    Args:
        p: features of real texts [n, d].
        q: features of generated texts [m, d].
        seeds: of k-means.
        scaling: c of the divergence curve exp(−c·KL); the package's default is 5, the paper
            under test takes 0.2, as SEDD does. Scores of different c do not compare.

    Raises:
        UserError: the features do not fit together, are not finite or too few, or there is no
            seed.
    """
    import faiss
    from mauve import compute_mauve

    p, q = (np.asarray(x, dtype=np.float32) for x in (p, q))
    if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1]:
        raise UserError(
            f"MAUVE: found features of shapes {list(p.shape)} and {list(q.shape)}; expected "
            "[texts, features] with equal features: make both with one featuriser"
        )
    if min(len(p), len(q)) < LEAST:
        raise UserError(
            f"MAUVE: found {len(p)} and {len(q)} texts; expected at least {LEAST} of each: "
            "generate more"
        )
    if not (np.isfinite(p).all() and np.isfinite(q).all()):
        raise UserError(
            "MAUVE: found features that are not finite; expected finite ones: look at the texts"
        )
    if not len(seeds):
        raise UserError("MAUVE: found no k-means seed; expected at least one: raise mauve_seeds")
    # faiss has its own OpenMP threads, whose number would change the order of sums.
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        found = [
            compute_mauve(p_features=p, q_features=q, mauve_scaling_factor=scaling, seed=seed)
            for seed in seeds
        ]
    finally:
        faiss.omp_set_num_threads(threads)
    return Mauve(tuple(float(f.mauve) for f in found), int(found[0].num_buckets))
