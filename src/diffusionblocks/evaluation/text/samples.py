"""Every score of one set of samples; models, the n-gram floor and real text all come here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import UserError
from .diversity import diversity
from .estimate import Estimate
from .featurizers import Featurise
from .mauve import mauve_scores
from .sequences import checked

#: Which direction of a score is better; neutral where it should come near real text's.
BETTER = {
    "mauve": "higher",
    "mauve_spread": "neutral",
    "generative_perplexity": "lower",
    "distinct_1": "neutral",
    "distinct_2": "neutral",
    "distinct_3": "neutral",
    "ngram_entropy_1": "neutral",
    "ngram_entropy_2": "neutral",
    "ngram_entropy_3": "neutral",
    "repetition": "neutral",
}


@dataclass(frozen=True)
class SampleSettings:
    """How samples are scored.

    Attributes:
        featurizer: name of what made the features, for the table.
        judge: name of the judge, likewise.
        mauve_scaling: c of MAUVE's divergence curve.
        mauve_seeds: k-means seeds 0 … mauve_seeds − 1.
    """

    featurizer: str
    judge: str
    mauve_scaling: float = 0.2
    mauve_seeds: int = 5


def sample_scores(
    tokens: Tensor,
    prompt_length: int,
    decode: Callable[[list[int]], str],
    judge: Callable[[Tensor, int], Estimate],
    reference_features: np.ndarray | None,
    featurise: Featurise,
    settings: SampleSettings,
) -> list[dict[str, Any]]:
    """MAUVE against real texts, judged perplexity and diversity of one set of samples.

    Every score reads the continuations only: the prompts are real text, and with them even
    shuffled words come near it in MAUVE. Call it with real held-out text as ``tokens`` for the
    ceiling, other real texts being the reference, and with an n-gram model's or shuffled text
    for the floor.

    Args:
        tokens: prompts with their continuations, int64 [N, P + C].
        prompt_length: P, at least 1.
        decode: token numbers to text.
        judge: samples and prompt_length → perplexity of what follows the prompts.
        reference_features: of real texts of C tokens, [M, d]; None leaves MAUVE out, which costs
            most of the time.
        featurise: texts to features.

    Returns:
        Rows of metric, value, error, better, split, extractor, samples, reference_samples. The
        error of ``mauve`` is over k-means seeds, that of perplexity over samples; diversity
        has none (NaN).

    Raises:
        UserError: the samples cannot be scored.
    """
    tokens = checked(tokens)
    if not 1 <= prompt_length < tokens.shape[1]:
        raise UserError(
            f"found prompts of {prompt_length} tokens in samples of {tokens.shape[1]}; expected "
            "at least one token of each: correct prompt_length"
        )
    found = []
    if reference_features is not None:
        # A text of nothing but its end is a sample too, a bad one.
        texts = [decode(row) or " " for row in tokens[:, prompt_length:].tolist()]
        seeds, many = range(settings.mauve_seeds), len(reference_features)
        mauve = mauve_scores(reference_features, featurise(texts), seeds, settings.mauve_scaling)
        found = [
            ("mauve", mauve.mean, mauve.error, settings.featurizer, many),
            ("mauve_spread", mauve.spread, float("nan"), settings.featurizer, many),
        ]
    judged = judge(tokens, prompt_length)
    found.append(("generative_perplexity", judged.value, judged.error, settings.judge, 0))
    found += [
        (name, value, float("nan"), "tokens", 0)
        for name, value in diversity(tokens[:, prompt_length:]).items()
    ]
    return [
        {
            "metric": metric,
            "value": value,
            "error": error,
            "better": BETTER[metric],
            "split": "",
            "extractor": extractor,
            "samples": len(tokens),
            "reference_samples": reference,
        }
        for metric, value, error, extractor, reference in found
    ]
