"""Generative perplexity at matched diversity: runs compared where they are equally varied.

Lower temperature buys lower perplexity with less variety, so a run is a curve over temperatures
and not a point. Along that curve ln(perplexity) is interpolated linearly in diversity between
neighbouring temperatures, up to the diversity of real text. Outside the measured range there is
no answer: extrapolating would invent one.
"""

import math
from collections.abc import Sequence

import numpy as np

from ...errors import UserError


def matched_perplexity(
    diversity: Sequence[float], perplexity: Sequence[float], target: float
) -> float:
    """Perplexity where a run's samples have the target diversity.

    Args:
        diversity: one a temperature, in the order of the temperatures (distinct-2, say).
        perplexity: of the same samples, positive.
        target: the diversity at which runs are compared, that of real text say.

    Returns:
        NaN where the target lies outside the measured diversities. Where the curve passes the
        target more than once, the highest perplexity of them: the claim is that it is low.

    Raises:
        UserError: the lists differ in length or hold impossible numbers.
    """
    x, y = np.asarray(diversity, dtype=float), np.asarray(perplexity, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or not (np.isfinite(x).all() and (y > 0).all()):
        raise UserError(
            f"found {x.size} diversities and {y.size} perplexities; expected equally many, finite "
            "and positive: give one of each for a temperature"
        )
    log_y = np.log(y)
    found = list(y[x == target])
    for i in range(len(x) - 1):
        low, high = sorted((x[i], x[i + 1]))
        if low < target < high:
            share = (target - x[i]) / (x[i + 1] - x[i])
            found.append(math.exp(log_y[i] + share * (log_y[i + 1] - log_y[i])))
    return max(map(float, found), default=math.nan)
