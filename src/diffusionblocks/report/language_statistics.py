"""Language runs compared: block-wise with end to end, and the ways to be block-wise.

Every comparison is paired by seed, with Student's t interval at 95 %. End to end is compared
twice: at equal layer evaluations, where it has about twice the updates because a denoising
sequence is twice as long, and at equal tokens seen. Perplexities are compared by their ratio
(means of logarithms), everything else by its difference.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from . import statistics as st
from .statistics import Interval, holm, reading, signed, t_interval

#: The columns that name a configuration: a run without its seed.
CONFIGURATION = [*st.CONFIGURATION, "embedding", "iterations_scale"]
METRIC_NAMES = {
    "next_token_cross_entropy": "next-token cross-entropy",
    "likelihood_bound": "likelihood bound",
    "bits_per_character": "bits per character",
    "bound_sigma_0": "cut σ₀ of the bound",
    "mauve": "MAUVE",
    "mauve_spread": "spread of MAUVE over k-means seeds",
    "generative_perplexity": "judged perplexity",
    "generative_perplexity_matched": "judged perplexity at equal diversity",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "repetition": "repetition rate",
    "ngram_entropy_1": "unigram entropy",
    "ngram_entropy_2": "bigram entropy",
    "ngram_entropy_3": "trigram entropy",
}
UNITS = {
    "next_token_cross_entropy": "nats a token",
    "likelihood_bound": "nats a token",
    "bits_per_character": "bits a character",
    "ngram_entropy_1": "nats",
    "ngram_entropy_2": "nats",
    "ngram_entropy_3": "nats",
}
#: Compared by ratio instead of difference.
RATIOS = ("generative_perplexity", "generative_perplexity_matched")
#: Numbers about a score, which are not compared themselves.
NOT_COMPARED = ("bound_sigma_0", "mauve_spread")
#: What the claim about language is judged by.
MAIN_METRICS = ("likelihood_bound", "mauve", "generative_perplexity_matched")
#: Blocks match where they are surely no more than this share worse; the claims' own measure.
MATTERS = 0.05

QUESTIONS = {
    "layer_evaluations": "How do blocks stand against end to end at equal layer evaluations?",
    "tokens_seen": "How do blocks stand against end to end at equal tokens seen?",
    "partition": "Does equal mass beat uniform?",
    "embedding": "Does a jointly trained embedding beat a frozen one?",
    "method": "Do interleaved blocks differ from independent ones?",
    "overlap": "Does overlap help?",
}
#: Questions that change one column and keep the others: treatments, baselines; None is any other.
_ONE_COLUMN: dict[str, tuple[list | None, list]] = {
    "partition": (["equal_mass"], ["uniform_log_sigma", "uniform_sigma"]),
    "embedding": (["joint", "from_checkpoint"], ["frozen"]),
    "method": (["blockwise_interleaved"], ["blockwise_independent"]),
    "overlap": (None, [0.0]),
}
BUDGETS = ("equal layer evaluations", "equal tokens seen", "other cost")
COLUMNS = (
    "question,comparison,case,metric,sampling,split,unit,effect,low,high,baseline_mean,n_seeds,"
    "p_value,p_holm,better,reading,match"
).split(",")


def describe(row: dict) -> str:
    """A configuration in plain words, for instance "B = 3, equal mass, overlap 0.1, frozen"."""
    text = st.describe(row)
    if row["method"] == "end_to_end":
        return text
    scale = "" if row["iterations_scale"] == 1 else f", iterations × {row['iterations_scale']:g}"
    return f"{text}, {row['embedding']} embedding{scale}"


def budgets(scores: pd.DataFrame) -> pd.Series:
    """What every end-to-end row shares with the block-wise runs; "" for these.

    Args:
        scores: rows with method, layer_evaluations and tokens_seen.
    """
    blockwise = scores[scores["method"] != "end_to_end"]
    equal_cost = scores["layer_evaluations"].isin(set(blockwise["layer_evaluations"]))
    equal_tokens = scores["tokens_seen"].isin(set(blockwise["tokens_seen"]))
    named = np.select([equal_cost, equal_tokens], BUDGETS[:2], BUDGETS[2])
    named = pd.Series(named, index=scores.index, dtype=object)
    return named.where(scores["method"] == "end_to_end", "")


def _interval(metric: str, pairs: np.ndarray) -> Interval:
    values = np.log(pairs) if metric in RATIOS else pairs
    return t_interval(values[:, 0] - values[:, 1])


def match(metric: str, interval: Interval, better: str, baseline: float) -> str:
    """Whether a treatment keeps up with its baseline: better, matches, worse or undecided.

    It matches where the whole interval is at most :data:`MATTERS` of the baseline on the worse
    side; an interval that reaches further on that side and holds 0 decides nothing.
    """
    if interval.n < 2 or better not in ("lower", "higher"):
        return st.NOT_TESTED if interval.n < 2 else ""
    worst = interval.high if better == "lower" else -interval.low
    best = interval.low if better == "lower" else -interval.high
    allowed = np.log1p(MATTERS) if metric in RATIOS else MATTERS * abs(baseline)
    if worst < 0:
        return "better"
    if worst <= allowed:
        return "matches"
    return "worse" if best > 0 else "undecided"


def _paired(treated: list[dict], untreated: list[dict], on: str) -> np.ndarray:
    """Values of two sets of rows side by side, [seeds, 2]: only those that are equal in ``on``.

    Sample counts must agree too, since every score of samples depends on them.
    """
    keys = ("seed", "samples", "reference_samples", on)
    partners: dict[tuple, float] = {}
    for row in untreated:
        partners.setdefault(tuple(row[k] for k in keys), row["value"])
    named = [(tuple(row[k] for k in keys), row["value"]) for row in treated]
    pairs = [(value, partners[key]) for key, value in named if key in partners]
    return np.array(pairs, dtype=float).reshape(-1, 2)


def _change(question: str, treatment: dict, baseline: dict) -> str:
    """What the two differ in, for the comparison's name."""
    if question == "partition":
        return " − ".join(st.STRATEGY_NAMES[c["partition"]] for c in (treatment, baseline))
    if question == "embedding":
        return f"{treatment['embedding']} − {baseline['embedding']}"
    if question == "method":
        return "interleaved − independent"
    return f"overlap {treatment['overlap']:g} − overlap {baseline['overlap']:g}"


def _asked(rows: list[dict]) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Every (question, name, case, pairs) that the rows of one score allow."""
    configured: dict[tuple, list[dict]] = {}
    for row in rows:
        configured.setdefault(tuple(row[k] for k in CONFIGURATION), []).append(row)
    blockwise = [own[0] for own in configured.values() if own[0]["method"] != "end_to_end"]
    whole = [row for row in rows if row["method"] == "end_to_end"]
    for question in ("layer_evaluations", "tokens_seen"):
        for treatment in blockwise if whole else ():
            treated = configured[tuple(treatment[k] for k in CONFIGURATION)]
            case = describe(treatment)
            yield question, f"{case} − end to end", case, _paired(treated, whole, question)
    for question, (treatments, baselines) in _ONE_COLUMN.items():
        for treatment in blockwise:
            value = treatment[question]
            if value in baselines or (treatments is not None and value not in treatments):
                continue
            treated = configured[tuple(treatment[k] for k in CONFIGURATION)]
            for other in baselines:
                baseline = treatment | {question: other}
                untreated = configured.get(tuple(baseline[k] for k in CONFIGURATION))
                if untreated is None:
                    continue
                case = describe(treatment)
                name = f"{_change(question, treatment, baseline)} ({case})"
                yield question, name, case, _paired(treated, untreated, "layer_evaluations")


def comparisons(scores: pd.DataFrame) -> pd.DataFrame:
    """Paired comparisons that answer :data:`QUESTIONS`, for every score and way of sampling.

    Effect, low and high are treatment − baseline in the metric's unit, or treatment ÷ baseline
    where ``unit`` is "ratio". A family for Holm's correction is one question asked of one score.

    Args:
        scores: rows of ``scores.csv``; undefined values (NaN) are left out.
    """
    rows = []
    measured = scores[scores["value"].notna() & ~scores["metric"].isin(NOT_COMPARED)]
    measured = measured.fillna({"samples": -1, "reference_samples": -1})
    score = ["metric", "better", "split", "sampling"]
    for (metric, better, split, sampling), group in measured.groupby(score, sort=False):
        for question, name, case, pairs in _asked(group.to_dict("records")):
            interval = _interval(metric, pairs)
            shown = [interval.mean, interval.low, interval.high]
            ratio = metric in RATIOS
            effect, low, high = np.exp(shown) if ratio else shown
            baseline = pairs[:, 1].mean() if len(pairs) else np.nan
            rows.append(
                {"question": question, "comparison": name, "case": case, "metric": metric}
                | {"sampling": sampling, "split": split}
                | {"unit": "ratio" if ratio else UNITS.get(metric, ""), "effect": effect}
                | {"low": low, "high": high, "baseline_mean": baseline, "n_seeds": interval.n}
                | {"p_value": interval.p_value, "better": better}
                | {"reading": reading(interval, better)}
                | {"match": match(metric, interval, better, baseline)}
            )
    table = pd.DataFrame(rows, columns=[c for c in COLUMNS if c != "p_holm"])
    family = ["question", "metric", "sampling"]
    table["p_holm"] = table.groupby(family)["p_value"].transform(holm)
    return table[COLUMNS]


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and t interval over seeds of every configuration and score, with what it cost."""
    keys = [*CONFIGURATION, "metric", "better", "split", "sampling", "temperature", "top_p"]
    keys += ["steps", "extractor", "samples", "reference_samples", "iterations"]
    keys += ["layer_evaluations", "tokens_seen"]
    rows = []
    for names, group in scores.groupby(keys, dropna=False, sort=False):
        interval = t_interval(group["value"].dropna())
        rows.append(
            dict(zip(keys, names, strict=True))
            | {"mean": interval.mean, "low": interval.low, "high": interval.high}
            | {"n_seeds": interval.n}
        )
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high", "n_seeds"])


def speeds(generation: pd.DataFrame, sampling: str) -> pd.DataFrame:
    """Rows of one way of sampling, one a network and seed.

    How long a network was trained does not matter to its speed: runs that differ in that alone
    are one network, whose speed is their mean.
    """
    rows = generation[generation["sampling"] == sampling]
    network = [c for c in CONFIGURATION if c != "iterations_scale"]
    keys = [*network, "seed"]
    mean = rows.groupby(keys, dropna=False)["tokens_per_second"].transform("mean")
    return rows.assign(tokens_per_second=mean).drop_duplicates(keys, ignore_index=True)


def amount(row: dict, value: float) -> str:
    """An effect in its own unit: "×1.31" or "+0.208 nats a token"."""
    if row["unit"] == "ratio":
        return f"×{value:.3g}"
    return f"{signed(value)} {row['unit']}".rstrip()


def change(row: dict) -> str:
    """Effect and interval of a comparison in words."""
    if row["n_seeds"] == 0:
        return "no seed ran both at equal cost"
    if row["n_seeds"] == 1:
        return f"{amount(row, row['effect'])}, one seed"
    unit = row["unit"] if row["unit"] != "ratio" else ""
    bare = row | {"unit": "ratio" if row["unit"] == "ratio" else ""}
    interval = f"{amount(bare, row['low'])} to {amount(bare, row['high'])}"
    effect = f"{amount(bare, row['effect'])} {unit}".rstrip()
    return f"{effect} (95 % interval {interval}, {row['n_seeds']} seeds)"
