"""What a language run is scored on, from its files to rows: likelihood, then its samples.

The models come in as functions of tokens (see :mod:`.text`), so real text, an n-gram model and
every trained run are scored by the same code.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import GenerationConfig, LanguageConfig
from ..data.text import TextSplit, load_text
from ..data.tokenizers import Tokenizer, load_tokenizer
from ..devices import prepare
from ..files import write_json
from ..language_jobs import evenly_spaced, load_generated, prompts_and_truth
from ..provenance import provenance
from ..randomness import stream
from ..text_model import TextModel
from .text.bound import bound_samples, curve, cut_grid, quoted_bound
from .text.estimate import Estimate, bits_per_character, mean_estimate
from .text.featurizers import Featurise, featuriser
from .text.judge import generative_perplexity, hub_judge, perplexity
from .text.likelihood import LogProbs, denoising_nats, next_token_log_probs, sequence_nats
from .text.ngram import KneserNey
from .text.samples import SampleSettings, sample_scores

#: Tokens that the n-gram model is counted on at most.
NGRAM_TOKENS = 5_000_000
#: Prompts whose continuations are shown.
SHOWN = 4
#: Decides the noise at which likelihoods are estimated: the same for every run.
SEED = 0

#: Samples [N, L] and the length of their prompts → perplexity of what follows.
Judge = Callable[[Tensor, int], Estimate]


def log_probs_of(model: TextModel) -> LogProbs:
    """ln p of every token but the first under an end-to-end model."""

    def log_probs(tokens: Tensor) -> Tensor:
        tokens = tokens.to(model.device)
        return next_token_log_probs(model.next_token_logits(tokens), tokens)

    return log_probs


def judge_of(
    language: LanguageConfig, manifest: Path | None, decode, device: torch.device
) -> tuple[str, Judge]:
    """The preset's judge and its name: the DAG's own model, or one of the hub.

    Args:
        manifest: of the own judge.
        decode: token numbers to text, which a hub judge reads.
    """
    name = language.evaluation.judge.name
    if name is None:
        log_probs = log_probs_of(TextModel(manifest, device))
        return "own", lambda tokens, first: generative_perplexity(log_probs, tokens, first)
    judged = hub_judge(name, device)

    def judge(tokens: Tensor, first: int) -> Estimate:
        rows = tokens.tolist()
        prompts = [decode(row[:first]) for row in rows]
        return perplexity(*judged(prompts, [decode(row[first:]) for row in rows]))

    return name, judge


class SampleScorer:
    """Scores sets of continuations; the models that it needs are loaded once.

    Args:
        judge: manifest of the own judge, if the preset has one.
    """

    def __init__(
        self, language: LanguageConfig, data: Path, judge: Path | None, device: torch.device
    ):
        self.language, self.data = language, data
        self.tokenizer: Tokenizer = load_tokenizer(data / "tokenizer.json")
        name, self.judge = judge_of(language, judge, self.tokenizer.decode, device)
        settings = language.evaluation
        self.settings = SampleSettings(
            settings.featurizer, name, settings.mauve_scaling, settings.mauve_seeds
        )
        self.featurise: Featurise = featuriser(settings.featurizer, device)

    def reference(self, generation: GenerationConfig) -> Tensor:
        """Real test text: the prompts of a generation with what really follows them."""
        length = generation.prompt_length + generation.new_tokens
        return prompts_and_truth(load_text(self.data, "test", length), generation)

    def scores(self, tokens: Tensor, name: str) -> list[dict[str, Any]]:
        """Rows of one set of continuations [N, prompt_length + new_tokens].

        MAUVE is for the first of the preset's generations, the main one; the others are there to
        compare judged perplexity at equal diversity.
        """
        generation = self.language.generation[name]
        references = None
        if name == next(iter(self.language.generation)):
            following = self.reference(generation)[:, generation.prompt_length :]
            texts = [self.tokenizer.decode(row) for row in following.tolist()]
            references = self.featurise(texts)
        return sample_scores(
            tokens,
            generation.prompt_length,
            self.tokenizer.decode,
            self.judge,
            references,
            self.featurise,
            self.settings,
        )

    def shown(self, tokens: Tensor, prompt_length: int) -> list[dict[str, Any]]:
        """The first prompts and continuations as text."""
        decode = self.tokenizer.decode
        return [
            {
                "number": i,
                "prompt": decode(row[:prompt_length]),
                "text": decode(row[prompt_length:]),
            }
            for i, row in enumerate(tokens[:SHOWN].tolist())
        ]


def held_out(language: LanguageConfig, data: Path, split: str) -> Tensor:
    """Whole contexts of one split, spread over it: int64 [sequences, context_length]."""
    length = language.network.context_length
    text: TextSplit = load_text(data, split, length)
    count = text.count(length)
    index = evenly_spaced(count, min(count, language.evaluation.sequences))
    return text.windows(index, length)


def _storable(row: dict[str, Any]) -> dict[str, Any]:
    """The row with nothing in the place of NaN, which JSON does not have."""
    return {key: None if value != value else value for key, value in row.items()}


def _row(metric: str, estimate: Estimate, better: str = "lower", note: str = "") -> dict[str, Any]:
    return {
        "metric": metric,
        "value": estimate.value,
        "error": estimate.error,
        "better": better,
        "split": "test",
        "extractor": "",
        "samples": estimate.n,
        "reference_samples": 0,
        "note": note,
    }


def _in_bits(nats: Estimate, tokens: Tensor, tokenizer: Tokenizer) -> Estimate:
    """Bits a character of a score of positions 1 … L − 1 of the sequences."""
    scored = tokens[:, 1:]
    characters = sum(len(tokenizer.decode(row)) for row in scored.tolist())
    return bits_per_character(nats, scored.numel(), characters)


def exact_rows(log_probs: LogProbs, tokens: Tensor, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Rows of a model that gives the likelihood itself."""
    nats = mean_estimate(sequence_nats(log_probs, tokens))
    return [
        _row("next_token_cross_entropy", nats),
        _row("likelihood_bound", nats, note="exact"),
        _row("bits_per_character", _in_bits(nats, tokens, tokenizer), note="exact"),
    ]


def bounded_rows(
    model: TextModel, language: LanguageConfig, data: Path, tokenizer: Tokenizer
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of a denoiser, and the curve of its bound on validation and test text."""
    settings = language.evaluation
    # Boundaries rise from σ_min here, while block 0 owns the highest noise.
    highest, *others = model.ranges
    edges = [r.sigma_lo for r in [*others[::-1], highest]] + [highest.sigma_hi]
    cuts = cut_grid(edges, max(1, round(settings.bound_cuts / len(model.ranges))))
    tokens = {split: held_out(language, data, split) for split in ("validation", "test")}
    found = {
        split: bound_samples(model.denoiser, model.table, t, cuts, settings.bound_draws, SEED)
        for split, t in tokens.items()
    }
    test = tokens["test"]
    first = denoising_nats(model.denoiser, model.table, test, float(cuts[-1]), SEED)
    sigma_0, bound = quoted_bound(found["validation"], found["test"])
    note = f"sigma_0={sigma_0:.4g}"
    rows = [
        _row("next_token_cross_entropy", mean_estimate(first), note="first block at sigma_max"),
        _row("likelihood_bound", bound, note=note),
        _row("bound_sigma_0", Estimate(sigma_0, float("nan"), bound.n), "neutral"),
        _row("bits_per_character", _in_bits(bound, test, tokenizer), note=note),
    ]
    lines = [{"split": s, **line} for s, samples in found.items() for line in curve(samples)]
    return rows, lines


@torch.inference_mode()
def score_run(
    language: LanguageConfig,
    manifest: Path,
    samples: dict[str, Path],
    data: Path,
    judge: Path | None,
    output: Path,
) -> None:
    """Verb ``language score``: likelihood of a run, and every set of its samples.

    Args:
        samples: name of a generation → its file.
        judge: manifest of the own judge, if the preset has one.
    """
    began = time.monotonic()
    device = prepare(language.compute.device, language.compute.threads)
    model = TextModel(manifest, device)
    model.check_tokenizer(data / "tokenizer.json")
    scorer = SampleScorer(language, data, judge, device)
    if model.denoises:
        rows, lines = bounded_rows(model, language, data, scorer.tokenizer)
    else:
        tokens = held_out(language, data, "test")
        rows, lines = exact_rows(log_probs_of(model), tokens, scorer.tokenizer), []
    scores = [{"sampling": "", **row} for row in rows]
    shown = []
    for name, path in samples.items():
        generation, tokens = language.generation[name], load_generated(path).flatten(0, 1)
        found = scorer.scores(tokens, name)
        scores += [{"sampling": name, **row, "note": ""} for row in found]
        if not shown:
            every = tokens[:: generation.continuations]
            lines_shown = scorer.shown(every, generation.prompt_length)
            shown = [{"sampling": name, **line} for line in lines_shown]
    record = {
        "run": model.manifest["run"],
        "config_hash": model.run.hash,
        "iterations": model.manifest["iterations"],
        "layer_evaluations": model.manifest["layer_evaluations"],
        "scores": [_storable(row) for row in scores],
        "bound_curve": [_storable(row) for row in lines],
        "samples": shown,
        "seconds": time.monotonic() - began,
        "provenance": provenance(device),
    }
    write_json(output, record)


@torch.inference_mode()
def score_floor(language: LanguageConfig, data: Path, judge: Path | None, output: Path) -> None:
    """Verb ``language floor``: real text as a ceiling, two floors, and the judge.

    Real samples are windows of the validation text, scored against the same test windows as any
    model's. The floors are an n-gram model, and the real samples with the tokens after the prompt
    shuffled: a score that cannot tell those from real text decides nothing.
    """
    began = time.monotonic()
    device = prepare(language.compute.device, language.compute.threads)
    scorer = SampleScorer(language, data, judge, device)
    name, generation = next(iter(language.generation.items()))
    length, first = generation.prompt_length + generation.new_tokens, generation.prompt_length
    validation = load_text(data, "validation", length)
    count = validation.count(length)
    wanted = min(count, generation.prompts * generation.continuations)
    real = validation.windows(evenly_spaced(count, wanted), length)

    train = load_text(data, "train", length)
    counted = torch.from_numpy(train.tokens[:NGRAM_TOKENS].astype("int64"))
    ngram = KneserNey.fit(counted, language.evaluation.ngram_order, train.vocabulary)
    reference = scorer.reference(generation)
    prompts = reference[:, :first].repeat_interleave(generation.continuations, 0)
    made = ngram.sample(prompts, generation.new_tokens, stream("cpu", SEED, "n-gram"))

    drawn = torch.rand(len(real), generation.new_tokens, generator=stream("cpu", SEED, "shuffled"))
    mixed = real[:, first:].gather(1, drawn.argsort(1))
    shuffled = torch.cat([real[:, :first], mixed], 1)

    test = held_out(language, data, "test")
    note = f"interpolated Kneser-Ney, order {language.evaluation.ngram_order}"
    scores = [
        {"kind": "real", "sampling": "", **row, "note": "validation text"}
        for row in scorer.scores(real, name)
    ]
    scores += [
        {"kind": "shuffled", "sampling": "", **row, "note": "validation text, tokens shuffled"}
        for row in scorer.scores(shuffled, name)
    ]
    scores += [
        {"kind": "ngram", "sampling": name, **row, "note": note}
        for row in scorer.scores(made, name)
    ]
    scores += [
        {"kind": "ngram", "sampling": "", **row}
        for row in exact_rows(ngram.log_probs, test, scorer.tokenizer)
    ]
    if judge is not None:
        log_probs = log_probs_of(TextModel(judge, device))
        scores += [
            {"kind": "judge", "sampling": "", **row}
            for row in exact_rows(log_probs, test, scorer.tokenizer)
        ]
    shown = [{"kind": "real", **line} for line in scorer.shown(reference, first)]
    every = made[:: generation.continuations]
    shown += [{"kind": "ngram", **line} for line in scorer.shown(every, first)]
    record = {
        "scores": [_storable(row) for row in scores],
        "samples": shown,
        "seconds": time.monotonic() - began,
        "provenance": provenance(device),
    }
    write_json(output, record)
