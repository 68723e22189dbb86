"""Token sequences as every score takes them: checked once, with one line that tells the mend."""

import torch
from torch import Tensor

from ...errors import UserError


def checked(tokens: Tensor, vocabulary: int | None = None, least: int = 2) -> Tensor:
    """The tokens, if they are sequences that can be scored.

    Args:
        tokens: int64 [N, L].
        vocabulary: number of tokens that there are; None where the scorer knows none.
        least: fewest positions of a sequence.

    Raises:
        UserError: another shape or type, no sequence, sequences too short, or a token outside
            the vocabulary.
    """
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise UserError(
            f"found tokens of shape {list(tokens.shape)} and type {tokens.dtype}; expected whole "
            "numbers [sequences, positions]: cut the text into sequences of equal length"
        )
    n, length = tokens.shape
    if n < 1 or length < least:
        raise UserError(
            f"found {n} sequences of {length} tokens; expected at least 1 of {least}: give more "
            "text or shorten the context"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (vocabulary is not None and high >= vocabulary):
        top = "" if vocabulary is None else f" to {vocabulary - 1}"
        raise UserError(
            f"found token {low if low < 0 else high}; expected numbers from 0{top}: use the "
            "tokeniser that the model was trained with"
        )
    return tokens.long()


def finite(values: Tensor, what: str) -> Tensor:
    """The values, if all are numbers.

    Raises:
        UserError: one is infinite or not a number.
    """
    if not torch.isfinite(values).all():
        raise UserError(
            f"{what} gave numbers that are not finite; expected finite ones: train it again with "
            "a lower learning rate"
        )
    return values
