"""What the scores say and how sure we are: intervals over seeds, paired differences, verdicts.

A *configuration* is a run without its seed. Every interval is Student's t at 95 % over seeds,
every comparison is paired by seed, and the p values of the comparisons that answer one question
with one score are corrected together by Holm's method. With fewer than two paired seeds there is
an effect but no interval, and the reading is "not tested".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
#: The columns that name a configuration.
CONFIGURATION = [
    "task",
    "dataset",
    "method",
    "blocks",
    "partition",
    "overlap",
    "layers_per_block",
]
#: The columns that name a score.
SCORE = ["metric", "better", "split", "sampling", "extractor"]
#: Runs are compared only where these agree too: cost, and the counts that bias a Fréchet distance.
FAIR = ["layer_evaluations", "samples", "reference_samples"]
NOT_TESTED = "not tested"
NO_DIFFERENCE = "no difference shown"

STRATEGY_NAMES = {
    "equal_mass": "equal mass",
    "uniform_log_sigma": "uniform ln σ",
    "uniform_sigma": "uniform σ",
}
METHOD_NAMES = {
    "end_to_end": "end to end",
    "blockwise_independent": "independent blocks",
    "blockwise_interleaved": "interleaved blocks",
}
METRIC_NAMES = {
    "fid": "Fréchet distance",
    "kid": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "label_accuracy": "label accuracy",
    "nearest_train_distance": "distance to the nearest training image",
    "nearest_train_distance_ratio": "nearest-training-image distance ratio",
}


@dataclass(frozen=True)
class Interval:
    """A mean and its t interval; low, high and p_value are NaN with fewer than two values."""

    mean: float
    low: float
    high: float
    n: int
    p_value: float


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of independent values, Student's t interval, and the two-sided p value of mean 0.

    Values without any spread give an interval without width, and p = 1 for zeros, else 0.
    """
    x = np.asarray(values, dtype=float)
    n = len(x)
    if n < 2:
        return Interval(float(x.mean()) if n else np.nan, np.nan, np.nan, n, np.nan)
    mean, error = float(x.mean()), float(x.std(ddof=1) / np.sqrt(n))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    if error == 0:
        p_value = float(mean == 0)
    else:
        p_value = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Interval(mean, mean - half, mean + half, n, p_value)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction of one family of p values.

    The k-th smallest of m is multiplied by m − k + 1 and never falls below its predecessors
    (Holm 1979). NaN stays NaN and does not count towards m.
    """
    p = np.asarray(p_values, dtype=float)
    corrected = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    m = len(order)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(m, 0, -1)))
    return corrected


def even_layers(layers_per_block: str) -> bool:
    """Whether every block has as many layers as the others, as in 4-4-4."""
    return len(set(layers_per_block.split("-"))) == 1


def grid_overlap(frame: pd.DataFrame) -> float:
    """The overlap of the main grid: the one that most independent configurations share.

    Ties go to the smallest; 0 when there are no independent runs.
    """
    independent = frame[frame["method"] == "blockwise_independent"]
    configurations = independent[["blocks", "partition", "overlap"]].drop_duplicates()
    counts = configurations["overlap"].value_counts().sort_index()
    return float(counts.idxmax()) if len(counts) else 0.0


def main_grid(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of end to end and of the main grid: independent, equal blocks, the grid's overlap."""
    independent = (
        (frame["method"] == "blockwise_independent")
        & (frame["overlap"] == grid_overlap(frame))
        & frame["layers_per_block"].map(even_layers).astype(bool)
    )
    return frame[independent | (frame["method"] == "end_to_end")]


def describe(configuration: dict) -> str:
    """A configuration in plain words, for instance "B = 3, equal mass, overlap 0.05"."""
    if configuration["method"] == "end_to_end":
        return METHOD_NAMES["end_to_end"]
    partition = configuration["partition"]
    parts = [f"B = {configuration['blocks']}", STRATEGY_NAMES.get(partition, partition)]
    parts.append(f"overlap {configuration['overlap']:g}")
    if not even_layers(configuration["layers_per_block"]):
        parts.append(f"layers {configuration['layers_per_block']}")
    if configuration["method"] == "blockwise_interleaved":
        parts.append("interleaved")
    return ", ".join(parts)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and t interval over seeds of every configuration and score, with its settings."""
    settings = ["solver", "steps", "guidance", *FAIR]
    keys = [*CONFIGURATION, *SCORE, *settings]
    rows = []
    for values, group in scores.groupby(keys, dropna=False, sort=False):
        interval = t_interval(group["value"])
        rows.append(
            dict(zip(keys, values, strict=True))
            | {"mean": interval.mean, "low": interval.low, "high": interval.high}
            | {"n_seeds": interval.n}
        )
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high", "n_seeds"])


@dataclass(frozen=True)
class Comparison:
    """A question, the configuration asked about and the one it is measured against."""

    question: str
    label: str
    case: str
    treatment: dict
    baseline: dict


#: Questions that change one column of a configuration and keep the others.
_ONE_COLUMN = {
    "partition": ("partition", ["equal_mass"], ["uniform_log_sigma", "uniform_sigma"]),
    "overlap": ("overlap", None, [0.0]),
    "method": ("method", ["blockwise_interleaved"], ["blockwise_independent"]),
}
QUESTIONS = {
    "partition": "Does equal mass beat uniform?",
    "blocks": "How do B blocks stand against end to end?",
    "overlap": "Does overlap help?",
    "method": "Do interleaved blocks differ from independent ones?",
}


def _label(question: str, treatment: dict, baseline: dict) -> tuple[str, str]:
    """The comparison's name, and what tells it from the others of its question."""
    case = f"B = {treatment['blocks']}"
    if not even_layers(treatment["layers_per_block"]):
        case += f" ({treatment['layers_per_block']} layers)"
    strategy = STRATEGY_NAMES[treatment["partition"]]
    overlap = f"overlap {treatment['overlap']:g}"
    turns = ", interleaved" if treatment["method"] == "blockwise_interleaved" else ""
    if question == "partition":
        other = STRATEGY_NAMES[baseline["partition"]]
        name = f"{strategy} − {other} ({case}, {overlap}{turns})"
        return name, f"{case} against {other}{turns}"
    if question == "overlap":
        return f"{overlap} − overlap 0 ({case}, {strategy}{turns})", f"{case} with {overlap}{turns}"
    if question == "method":
        return f"interleaved − independent ({case}, {strategy}, {overlap})", case
    return f"{case} − end to end ({strategy}, {overlap})", case


def _questions(configurations: pd.DataFrame) -> Iterator[Comparison]:
    """The comparisons that the configurations at hand allow, question by question."""
    every = configurations.to_dict("records")
    for question, (column, treatments, baselines) in _ONE_COLUMN.items():
        for treatment in every:
            wanted = (
                treatment[column] in treatments
                if treatments is not None
                else treatment[column] not in baselines
            )
            if not wanted or treatment["method"] == "end_to_end":
                continue
            for value in baselines:
                baseline = treatment | {column: value}
                if baseline in every:
                    names = _label(question, treatment, baseline)
                    yield Comparison(question, *names, treatment, baseline)
    for treatment in main_grid(configurations).to_dict("records"):
        if treatment["method"] == "end_to_end" or treatment["partition"] != "equal_mass":
            continue
        for baseline in every:
            same = all(baseline[k] == treatment[k] for k in ("task", "dataset"))
            if same and baseline["method"] == "end_to_end":
                names = _label("blocks", treatment, baseline)
                yield Comparison("blocks", *names, treatment, baseline)


def _rows_of(frame: pd.DataFrame, configuration: dict) -> pd.DataFrame:
    selected = np.logical_and.reduce([frame[k] == v for k, v in configuration.items()])
    return frame[selected]


def paired(frame: pd.DataFrame, treatment: dict, baseline: dict) -> pd.DataFrame:
    """Values of two configurations side by side, one row a seed that ran both fairly.

    Returns:
        seed, value (the treatment's) and value_baseline; seeds whose runs differ in layer
        evaluations or in sample counts are left out.
    """
    # A score without a reference set has no count of it; −1 lets two such rows meet.
    counted = frame.fillna(dict.fromkeys(FAIR, -1))
    keys = ["seed", *FAIR]
    left, right = _rows_of(counted, treatment), _rows_of(counted, baseline)
    both = left.merge(right, on=keys, suffixes=("", "_baseline"), validate="one_to_one")
    return both[["seed", "value", "value_baseline"]]


def reading(interval: Interval, better: str) -> str:
    """What the interval of a difference shows, given which direction is better."""
    if interval.n < 2:
        return NOT_TESTED
    if interval.low <= 0 <= interval.high:
        return NO_DIFFERENCE
    rose = interval.mean > 0
    if better not in ("lower", "higher"):
        return "higher" if rose else "lower"
    return "better" if rose == (better == "higher") else "worse"


COMPARISON_COLUMNS = (
    "comparison,question,case,metric,split,sampling,extractor,effect,low,high,baseline_mean,"
    "n_seeds,p_value,p_holm,better,reading"
).split(",")


def comparisons(scores: pd.DataFrame) -> pd.DataFrame:
    """Paired differences that answer :data:`QUESTIONS`, for every score in the table.

    The effect is treatment minus baseline in the units of the metric. A family for Holm's
    correction is one question asked of one metric, split, sampling and extractor. Reading
    goes by the uncorrected interval; ``p_holm`` says whether it survives the correction.

    Args:
        scores: rows of ``scores.csv``.
    """
    rows = []
    family = ["question", "metric", "split", "sampling", "extractor"]
    for score, group in scores.groupby(SCORE, dropna=False, sort=False):
        named = dict(zip(SCORE, score, strict=True))
        configurations = group[CONFIGURATION].drop_duplicates().sort_values(CONFIGURATION)
        for comparison in _questions(configurations):
            pairs = paired(group, comparison.treatment, comparison.baseline)
            interval = t_interval(pairs["value"] - pairs["value_baseline"])
            rows.append(
                {"comparison": comparison.label, "question": comparison.question}
                | {"case": comparison.case}
                | named
                | {"effect": interval.mean, "low": interval.low, "high": interval.high}
                | {"baseline_mean": pairs["value_baseline"].mean(), "n_seeds": interval.n}
                | {"p_value": interval.p_value, "reading": reading(interval, named["better"])}
            )
    table = pd.DataFrame(rows, columns=[c for c in COMPARISON_COLUMNS if c != "p_holm"])
    table["p_holm"] = table.groupby(family, dropna=False)["p_value"].transform(holm)
    return table[COMPARISON_COLUMNS]


def signed(value: float, form: str = "+.3g") -> str:
    """A number in words: with a minus sign as wide as its digits, not a hyphen."""
    return f"{value:{form}}".replace("-", "−")


def sentence(row: dict) -> str:
    """One row of :func:`comparisons` in plain words."""
    metric = METRIC_NAMES.get(row["metric"], row["metric"])
    where = f"{metric}" + (f", {row['split']} split" if row["split"] else "")
    start = f"{row['comparison']}: {where}, {row['sampling']} sampling: "
    if row["n_seeds"] == 0:
        return start + "not tested (no seed ran both at equal cost)."
    change = signed(row["effect"])
    if row["reading"] == NOT_TESTED:
        return start + f"{change} on one seed; not tested."
    words = f"{change} (95 % interval {signed(row['low'])} to {signed(row['high'])}, "
    words += f"{row['n_seeds']} seeds): {row['reading']}"
    if row["reading"] == NO_DIFFERENCE:
        return start + words + "."
    survives = "holds" if row["p_holm"] < 1 - CONFIDENCE else "does not hold"
    p = f"p = {row['p_holm']:.2g}" if row["p_holm"] >= 1e-4 else "p < 0.0001"
    return start + words + f"; {survives} after Holm's correction ({p})."


def _asked(table: pd.DataFrame, question: str, metric: str, split: str) -> pd.DataFrame:
    return table[
        (table["question"] == question) & (table["metric"] == metric) & (table["split"] == split)
    ]


NOT_RUN = "not tested: this preset has no runs that answer it."


def verdicts(
    table: pd.DataFrame, question: str, metric: str = "fid", split: str = "test"
) -> list[str]:
    """Sentences that answer one question with one score; a single one when nothing was run."""
    rows = _asked(table, question, metric, split).to_dict("records")
    return [sentence(row) for row in rows] or [NOT_RUN]


def headline(table: pd.DataFrame, question: str, metric: str = "fid", split: str = "test") -> str:
    """One line with what the comparisons of a question show, by way of sampling."""
    parts = []
    asked = _asked(table, question, metric, split)
    lost = asked["reading"].isin(["better", "worse"]) & (asked["p_holm"] >= 1 - CONFIDENCE)
    asked = asked.assign(case=asked["case"].where(~lost, asked["case"] + " (not after correction)"))
    for sampling, rows in asked.groupby("sampling", sort=False):
        readings = [
            f"{reading}: {', '.join(cases)}"
            for reading, cases in rows.groupby("reading", sort=False)["case"]
        ]
        parts.append(f"({sampling} sampling) " + "; ".join(readings))
    return ". ".join(parts) + "." if parts else NOT_RUN


def sampling_name(row: pd.Series) -> str:
    """A way of sampling in words, for instance "plain: Euler, 50 steps, no guidance"."""
    guidance = "no guidance" if row["guidance"] == 1 else f"guidance {row['guidance']:g}"
    return f"{row['sampling']}: {str(row['solver']).capitalize()}, {row['steps']} steps, {guidance}"


def sampling_names(frame: pd.DataFrame) -> dict[str, str]:
    """:func:`sampling_name` of every way of sampling in a table, in the table's order."""
    first = frame[frame["sampling"] != ""].drop_duplicates("sampling")
    return {row["sampling"]: sampling_name(row) for _, row in first.iterrows()}


def measured_on(setting: dict[str, str], scores: pd.DataFrame) -> str:
    """The scale in words: network, data, extractor and sample counts."""
    extractors = ", ".join(sorted({e for e in scores["extractor"] if e}))
    counts = sorted({int(n) for n in scores["samples"].dropna()})
    samples = " and ".join(f"{n:,}" for n in counts)
    size = "×".join(setting.get(k, "?") for k in ("layers", "width"))
    dataset = setting.get("dataset", "?")
    return f"DiT {size} on {dataset}, {extractors} features, {samples} samples"


def setting_sentences(setting: dict[str, str], scores: pd.DataFrame) -> list[str]:
    """What was run, at what scale and cost, in words computed from the tables."""
    get = {**dict.fromkeys(_SETTING_KEYS, "not recorded"), **setting}
    seeds = scores.groupby(CONFIGURATION)["seed"].nunique()
    many = sorted(set(seeds))
    cost = sorted({int(n) for n in scores["layer_evaluations"]})
    reference = scores[scores["split"] != ""].drop_duplicates("split")
    against = ", ".join(
        f"{int(n):,} images of the {split} split"
        for split, n in zip(reference["split"], reference["reference_samples"], strict=True)
        if n == n
    )
    measured = measured_on(setting, scores[scores["metric"] == "fid"])
    accuracy = setting.get("extractor_test_accuracy")
    known = f" (it names {float(accuracy):.1%} of the test images rightly)" if accuracy else ""
    return [
        f"Preset {get['preset']}: {get['description']}",
        f"Images: {get['dataset']}, {get['train_images']} to train on and {get['test_images']} "
        f"held out, {get['image_size']}×{get['image_size']} pixels. {get['dataset_note']}",
        f"Network: DiT of {get['layers']} layers, width {get['width']}; batch "
        f"{get['batch_size']}, {get['iterations']} iterations a block; image × layer passes a run: "
        + ", ".join(f"{n:,}" for n in cost)
        + ("" if len(cost) == 1 else " (they differ: only runs of equal cost are compared)"),
        f"Scores: {measured}{known}, against {against}.",
        "Sampling: " + "; ".join(sampling_names(scores).values()) + ".",
        f"Seeds a configuration: {' to '.join(str(n) for n in sorted({many[0], many[-1]}))}."
        + (" With one seed nothing is tested." if many[-1] < 2 else ""),
        f"Machine: {get['device']}, torch {get['torch']}, commit {get['commit']}.",
    ]


_SETTING_KEYS = (
    "preset,description,dataset,dataset_note,train_images,test_images,image_size,layers,width,"
    "batch_size,iterations,device,torch,commit"
).split(",")
