"""A mean over sequences with its standard error, in nats a token or in bits a character."""

import math
from dataclasses import dataclass

from torch import Tensor

from ...errors import UserError


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error.

    Attributes:
        value: the mean.
        error: its standard error over the sequences, as if they were independent draws of text;
            NaN where there is only one.
        n: number of sequences.
    """

    value: float
    error: float
    n: int


def mean_estimate(per_sequence: Tensor) -> Estimate:
    """Mean of one number a sequence, [N].

    Sequences, not tokens, are the unit: tokens of one text depend on each other, and an error
    that counted them one by one would be too small.
    """
    x = per_sequence.double()
    error = float(x.std() / math.sqrt(len(x))) if len(x) > 1 else math.nan
    return Estimate(float(x.mean()), error, len(x))


def bits_per_character(nats: Estimate, tokens: int, characters: int) -> Estimate:
    """Nats a token as bits a character, the unit that does not depend on the tokeniser.

    Args:
        nats: cross-entropy or bound, nats a token.
        tokens: number of tokens that were scored.
        characters: number of characters that those tokens stand for.

    Raises:
        UserError: there are no tokens or no characters.
    """
    if tokens < 1 or characters < 1:
        raise UserError(
            f"found {tokens} tokens for {characters} characters; expected at least one of each: "
            "count those of the scored text"
        )
    unit = tokens / characters / math.log(2)
    return Estimate(nats.value * unit, nats.error * unit, nats.n)
