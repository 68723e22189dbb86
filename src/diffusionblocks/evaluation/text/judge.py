"""Generative perplexity: how surprising a judge finds a model's text, prompts not counted.

A judge is another language model. It estimates fluency as the judge sees it, not likelihood, and
it is low for text that repeats itself: quote it beside :mod:`.diversity` of the same samples.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ...errors import UserError
from .estimate import Estimate
from .featurizers import load_pretrained
from .likelihood import LogProbs, next_token_log_probs, token_nats

#: Prompts and continuations → nats of each continuation [N] and how many tokens it has [N].
TextJudge: TypeAlias = Callable[[Sequence[str], Sequence[str]], tuple[Tensor, Tensor]]


def perplexity(nats: Tensor, counts: Tensor) -> Estimate:
    """exp(nats a token) of all texts together, with a standard error.

    Args:
        nats: of each text, [N].
        counts: tokens of each text that the nats belong to, [N].

    Returns:
        The error is that of a ratio of means over texts, carried through exp (delta method).

    Raises:
        UserError: no tokens were judged.
    """
    nats, counts = nats.double(), counts.double()
    n, total = len(nats), float(counts.sum())
    if not total > 0:
        raise UserError("found no token to judge; expected some: lengthen the continuations")
    mean = float(nats.sum()) / total
    value = math.exp(mean)
    if n < 2:
        return Estimate(value, math.nan, n)
    residual = nats - mean * counts
    error = float(residual.square().sum() / (n - 1) / n) ** 0.5 / (total / n)
    return Estimate(value, value * error, n)


def generative_perplexity(
    judge: LogProbs, tokens: Tensor, first: int, batch_size: int = 32
) -> Estimate:
    """Perplexity of continuations under a judge of the same tokeniser.

    The judge reads the prompt as well; only positions first … L − 1 are counted.

    Args:
        judge: ln p of every token but the first.
        tokens: prompts with their continuations, int64 [N, L].
        first: length of the prompts, at least 1: position 0 has no past.

    Raises:
        UserError: there is no prompt or nothing after it, or the tokens cannot be judged.
    """
    if not 1 <= first < tokens.shape[-1]:
        raise UserError(
            f"found prompts of {first} tokens in sequences of {tokens.shape[-1]}; expected at "
            "least one token of each: correct prompt_length"
        )
    nats = token_nats(judge, tokens, batch_size)[:, first - 1 :]
    return perplexity(nats.sum(1), torch.full((len(nats),), nats.shape[1]))


def hub_judge(name: str, device: torch.device | str = "cpu", batch_size: int = 8) -> TextJudge:
    """A causal model of the hub as a judge of texts, gpt2-xl say, in its own tokens.

    Prompt and continuation are tokenised apart and laid end to end, so that each token belongs
    to one of them. A text without prompt begins with the tokeniser's start token, and is read up
    to the length that the model allows.

    Raises:
        UserError: the model cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    mend = "connect to the hub once, or let the DAG train a judge (evaluation.judge.iterations)"
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, name, mend)
    model = load_pretrained(AutoModelForCausalLM.from_pretrained, name, mend, use_safetensors=True)
    model = model.to(device).eval()
    return text_judge(model, tokenizer, batch_size)


def text_judge(model, tokenizer, batch_size: int = 8) -> TextJudge:
    """A judge of texts out of a causal model and a tokeniser of transformers."""
    config = model.config
    most = getattr(config, "max_position_embeddings", None) or 2048
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def judge(prompts: Sequence[str], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        if len(prompts) != len(texts) or not texts:
            raise UserError(
                f"found {len(prompts)} prompts and {len(texts)} texts; expected equally many, at "
                "least one: give a prompt (it may be empty) for each"
            )
        pairs = list(zip(([start, *p] for p in encode(prompts)), encode(texts), strict=True))
        nats, counts = torch.zeros(len(pairs), dtype=torch.float64), torch.zeros(len(pairs))
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        for at in range(0, len(order), batch_size):
            rows = order[at : at + batch_size]
            joined = [(pairs[i][0] + pairs[i][1])[:most] for i in rows]
            length = max(map(len, joined))
            ids = torch.zeros(len(rows), length, dtype=torch.long)
            judged = torch.zeros(len(rows), length)
            for k, (i, sequence) in enumerate(zip(rows, joined, strict=True)):
                ids[k, : len(sequence)] = torch.tensor(sequence)
                judged[k, len(pairs[i][0]) : len(sequence)] = 1
            # Padding stands on the right, where a causal model never looks back from a text.
            ids = ids.to(model.device)
            log_p = next_token_log_probs(model(ids).logits, ids).double().cpu()
            nats[rows] = -(log_p * judged[:, 1:]).sum(1)
            counts[rows] = judged.sum(1)
        return nats, counts

    return judge
