"""What one job of the language sweep does, from its input files to its output files.

The counterpart of :mod:`.jobs`, whose training job and outputs it shares.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .config import GenerationConfig, LanguageConfig, TextRun, digest, validated
from .data.text import TextSplit, load_text, prepare_text
from .data.tokenizers import load_tokenizer
from .devices import prepare
from .drawn import DrawnBatches
from .errors import UserError
from .files import sha256, write_json
from .jobs import peak_memory
from .provenance import provenance
from .records import read_record
from .tensors import load_tensors, save_tensors
from .text_generate import continue_prompts, layer_passes_per_token
from .text_model import TextModel


def prepare_data(language: LanguageConfig, folder: Path) -> None:
    """Verb ``language data``: tokenise the preset's text into a folder."""
    prepare_text(language, folder)


def evenly_spaced(count: int, wanted: int) -> Tensor:
    """Numbers of ``wanted`` windows out of ``count``, spread over all of them."""
    return torch.arange(wanted) * count // wanted


def prompts_and_truth(split: TextSplit, settings: GenerationConfig) -> Tensor:
    """Held-out windows: their beginnings are the prompts, their ends what really follows.

    Returns:
        int64 [prompts, prompt_length + new_tokens].

    Raises:
        UserError: the text is too short for so many.
    """
    length = settings.prompt_length + settings.new_tokens
    if (count := split.count(length)) < settings.prompts:
        raise UserError(
            f"generation wants {settings.prompts} prompts with their continuations, but the test "
            f"text holds {count} windows of {length} tokens; lower generation.prompts"
        )
    return split.windows(evenly_spaced(count, settings.prompts), length)


def generate_run(
    manifest: Path,
    data: Path,
    settings: GenerationConfig,
    output: Path,
    report: Callable[[int, int], None],
    stop_after: float | None = None,
) -> bool:
    """Verb ``language generate``: continue held-out prompts with one run.

    Writes ``output`` (tokens [prompts, continuations, prompt_length + new_tokens]) and
    ``<stem>.json`` with the throughput.

    Args:
        stop_after: seconds after which to keep the batches made so far and stop.

    Returns:
        Whether all continuations are made; otherwise the same call goes on with them.
    """
    config = validated(TextRun, read_record(manifest, {"config": dict})["config"], manifest.name)
    device = prepare(config.compute.device, config.compute.threads)
    model = TextModel(manifest, device, settings.residency == "one_block")
    model.check_tokenizer(data / "tokenizer.json")
    length = settings.prompt_length + settings.new_tokens
    real = prompts_and_truth(load_text(data, "test", length), settings)
    prompts = real[:, : settings.prompt_length].repeat_interleave(settings.continuations, 0)
    kept = DrawnBatches(
        output.with_name(f".{output.stem}-batches"),
        digest([sha256(manifest), settings.model_dump(mode="json")]),
    )

    def make(first: int, count: int) -> dict[str, Tensor]:
        batch = prompts[first : first + count]
        return {"tokens": continue_prompts(model, batch, settings, first, config.seed)}

    drawing = (len(prompts), settings.batch_size, make, report)
    if not kept.draw(*drawing, stop_after, time.monotonic):
        return False
    drawn, seconds = kept.joined()
    tokens = drawn["tokens"].view(settings.prompts, settings.continuations, length)
    output.with_suffix(".json").unlink(missing_ok=True)
    save_tensors(output, {"tokens": tokens.int()}, {"config_hash": config.hash})
    new = len(prompts) * settings.new_tokens
    record = {
        "run": config.identity(),
        "config_hash": config.hash,
        "settings": settings.model_dump(mode="json"),
        "tokens": new,
        "seconds": seconds,
        "tokens_per_second": new / max(seconds, 1e-9),
        "layer_passes_per_token": layer_passes_per_token(model, settings),
        **peak_memory(device),
        "provenance": provenance(device),
    }
    write_json(output.with_suffix(".json"), record)
    kept.forget()
    return True


def complete(
    manifest: Path, data: Path, texts: list[str], settings: GenerationConfig, seed: int
) -> list[str]:
    """Verb ``language complete``: continuations of a user's own prompts, batched by length.

    Raises:
        UserError: a prompt is empty, too long, or has a character outside the vocabulary.
    """
    config = validated(TextRun, read_record(manifest, {"config": dict})["config"], manifest.name)
    device = prepare(config.compute.device, config.compute.threads)
    model = TextModel(manifest, device, settings.residency == "one_block")
    tokenizer = load_tokenizer(data / "tokenizer.json", model.facts["tokenizer_sha256"])
    encoded = [tokenizer.encode(text, strict=True) for text in texts]
    found: dict[int, str] = {}
    for length in sorted({len(tokens) for tokens in encoded}):
        rows = [i for i, tokens in enumerate(encoded) if len(tokens) == length]
        prompts = torch.tensor([encoded[i] for i in rows], dtype=torch.int64)
        made = continue_prompts(model, prompts.view(len(rows), length), settings, rows[0], seed)
        found |= {i: tokenizer.decode(row) for i, row in zip(rows, made.tolist(), strict=True)}
    return [found[i] for i in range(len(texts))]


def load_generated(path: Path) -> Tensor:
    """Tokens int64 [prompts, continuations, length] of a run's samples."""
    return load_tensors(path)["tokens"].long()
