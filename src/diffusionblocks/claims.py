"""Verdicts: each claim's effect over seeds, its interval and what it decides.

The effect is treatment against baseline, paired by seed: a ratio (worked out in logarithms, shown
as a relative change) or a difference. Its interval is Student's t at the ledger's confidence; the
p values of all claims tested on one set of tables are corrected together by Holm's method, and a
verdict needs the corrected one. A claim counts as tested only with enough seeds on both sides.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd

from .errors import UserError
from .ledger import Claim, Ledger, Published, Selection, cells
from .report.statistics import (
    FAIR,
    METHOD_NAMES,
    NOT_TESTED,
    STRATEGY_NAMES,
    Interval,
    even_layers,
    holm,
    t_interval,
)

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
VERDICTS = (SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_TESTED)
COLUMNS = (
    "claim,title,wording,task,scale,source,metric,split,sampling,extractor,comparison,direction,"
    "unit,expected_ratio,matters,exact,effect,low,high,n_seeds,min_seeds,p_value,p_holm,verdict,reason,"
    "treatment,baseline,treatment_mean,baseline_mean,published_effect,published_source,figure"
).split(",")
EVIDENCE_COLUMNS = ["claim", "side", "run", "seed", "value"]


@dataclass(frozen=True)
class Evidence:
    """What the tables hold for one claim.

    Attributes:
        rows: the numbers on both sides; ``EVIDENCE_COLUMNS`` and the names of the score.
        effects: one a seed, treatment against baseline: ln ratio over the expected one, or
            difference.
        missing: why there is nothing to test, or "".
    """

    rows: pd.DataFrame
    effects: np.ndarray
    missing: str


@dataclass(frozen=True)
class Judgement:
    """A claim's interval (of ln ratio or difference), p values and verdict."""

    interval: Interval
    p_value: float
    p_holm: float
    verdict: str
    reason: str


# ------------------------------------------------------------------------------- evidence


def matching(frame: pd.DataFrame, selection: Mapping) -> pd.DataFrame:
    """Rows that hold every value of one cell; columns that the table lacks match nothing."""
    kept = frame
    for column, wanted in selection.items():
        if column not in kept:
            return frame.iloc[:0]
        found = kept[column]
        if isinstance(wanted, str):
            found = found.astype(str)
        kept = kept[found == wanted]
    return kept


def _side(frame: pd.DataFrame, selection: Selection) -> tuple[pd.DataFrame, str]:
    """Rows of one side for the seeds that ran every cell, and what is missing, if anything."""
    wanted = cells(selection)
    found = [matching(frame, cell) for cell in wanted]
    for cell, rows in zip(wanted, found, strict=True):
        if rows.empty:
            return frame.iloc[:0], f"no run with {in_words(cell)}"
        if rows["seed"].duplicated().any():
            return frame.iloc[:0], f"several runs of one seed have {in_words(cell)}"
    shared = set.intersection(*(set(rows["seed"]) for rows in found))
    rows = pd.concat(found)
    return rows[rows["seed"].isin(shared)], ""


def _fair(treatment: pd.DataFrame, baseline: pd.DataFrame) -> list:
    """Seeds on both sides whose runs agree in cost and in sample counts."""
    both = pd.concat([treatment, baseline])
    counted = both[[c for c in FAIR if c in both]].fillna(-1)
    alike = counted.groupby(both["seed"]).nunique().le(1).all(axis=1)
    seeds = set(treatment["seed"]) & set(baseline["seed"])
    return sorted(seed for seed in seeds if alike.get(seed, True))


def in_words(cell: Mapping) -> str:
    """A selection in words, for instance "independent blocks, B = 3, equal mass, overlap 0"."""
    words = {
        "method": lambda v: METHOD_NAMES.get(v, v),
        "partition": lambda v: STRATEGY_NAMES.get(v, v),
        "blocks": lambda v: f"B = {_several(v)}",
        "learning_rate_scale": lambda v: f"learning rate ×{_several(v)}",
    }
    return ", ".join(
        words[column](value) if column in words else f"{column} {_several(value)}"
        for column, value in cell.items()
    )


def _several(value) -> str:
    """One value, or several with "and" before the last."""
    if not isinstance(value, list):
        return str(value)
    *most, last = map(str, value)
    return f"{', '.join(most)} and {last}" if most else last


def evidence(claim: Claim, frame: pd.DataFrame) -> Evidence:
    """The numbers that decide a claim, out of its source.

    Args:
        frame: rows with metric, value, run, seed and the columns that the claim selects by.
    """
    nothing = pd.DataFrame(columns=EVIDENCE_COLUMNS)
    kept = frame[frame["metric"] == claim.metric] if "metric" in frame else frame
    if "task" in kept:
        kept = kept[kept["task"] == claim.task]
    if "layers_per_block" in kept and "layers_per_block" not in claim.treatment:
        # Blocks are of equal depth unless a claim is about their depth.
        kept = kept[kept["layers_per_block"].map(lambda v: even_layers(str(v))).astype(bool)]
    if kept.empty:
        return Evidence(nothing, np.empty(0), f"no {claim.metric} was measured for {claim.task}")
    for column, wanted in claim.where.items():
        if not isinstance(wanted, list):
            kept = matching(kept, {column: wanted})
    several = {k: v for k, v in claim.where.items() if isinstance(v, list)}
    sides = []
    if "sampling" in kept and "sampling" not in claim.where:
        # Every preset's first way of sampling is its main one.
        kept = kept[kept["sampling"] == kept["sampling"].iloc[0]]
    for name, selection in (("treatment", claim.treatment), ("baseline", claim.baseline)):
        rows, missing = _side(kept, {**selection, **several})
        if missing:
            return Evidence(nothing, np.empty(0), missing)
        sides.append(rows.assign(claim=claim.id, side=name))
    seeds = _fair(*sides)
    sides = [rows[rows["seed"].isin(seeds)] for rows in sides]
    if not seeds:
        return Evidence(nothing, np.empty(0), "no seed ran both sides at equal cost")
    means = [_mean(rows, claim).reindex(seeds) for rows in sides]
    effects = (means[0] - means[1]).to_numpy(float)
    if claim.scale == "ratio":
        effects = effects - math.log(claim.expected_ratio)
    return Evidence(pd.concat(sides, ignore_index=True), effects, "")


def sighted(claim: Claim, seen: Evidence, floors: pd.DataFrame) -> Evidence:
    """The evidence, unless its measure cannot tell text from noise, which decides nothing.

    Args:
        floors: scores of real text (kind ``real``) and of the same text with its tokens in random
            order (``shuffled``); where either lacks the claim's metric, the evidence stands.
    """
    if floors.empty or seen.missing:
        return seen
    known = floors[floors["metric"] == claim.metric].groupby("kind")["value"].mean()
    if not {"real", "shuffled"} <= set(known.index):
        return seen
    real, noise = float(known["real"]), float(known["shuffled"])
    base = float(seen.rows.loc[seen.rows["side"] == "baseline", "value"].astype(float).mean())
    sign = 1 if real > noise else -1
    for name, value in (("real text", real), ("the baseline", base)):
        gap = sign * (math.log(value / noise) if claim.scale == "ratio" else value - noise)
        if gap <= margin(claim):
            why = f"{name} scores {value:.3g}, shuffled text {noise:.3g}: too near to tell apart"
            return Evidence(seen.rows, np.empty(0), why)
    return seen


def _mean(rows: pd.DataFrame, claim: Claim) -> pd.Series:
    """A seed's mean over the cells of one side: of logarithms where the scale is a ratio."""
    values = rows["value"].astype(float)
    if claim.scale == "ratio":
        if (values <= 0).any():
            raise UserError(
                f"claim {claim.id} takes ratios, but found {claim.metric} {values.min():g}; "
                "expected numbers above 0: set its scale to difference"
            )
        values = np.log(values)
    return values.groupby(rows["seed"]).mean()


# ------------------------------------------------------------------------------- verdicts


def margin(claim: Claim) -> float:
    """The smallest effect that matters, on the scale of the effects (ln ratio or difference)."""
    return math.log1p(claim.matters) if claim.scale == "ratio" else claim.matters


def boundaries(claim: Claim) -> tuple[float, ...]:
    """Where the claim turns from false to true; effects count as positive in its direction."""
    return {
        "better": (0.0,),
        "no_worse": (-margin(claim),),
        "near": (-margin(claim), margin(claim)),
    }[claim.comparison]


def _holds(claim: Claim, effect: float) -> bool:
    """Whether an effect, positive in the claim's direction, lies where the claim is true."""
    low, *high = boundaries(claim)
    return effect > low and (not high or effect < high[0])


def interval_and_p(claim: Claim, effects: Sequence[float]) -> tuple[Interval, float]:
    """The interval of the effect, and the p value of its lying on the nearest boundary.

    p is two-sided; for ``near`` this is twice the larger p of two one-sided tests. It is NaN with
    too few seeds, and without any spread over seeds, where Student's t knows nothing.
    """
    interval = t_interval(effects)
    if claim.exact or interval.n < claim.min_seeds or interval.low == interval.high:
        return interval, math.nan
    sign = 1 if claim.direction == "higher" else -1
    oriented = sign * np.asarray(effects, dtype=float)
    nearest = min(boundaries(claim), key=lambda b: abs(oriented.mean() - b))
    return interval, t_interval(oriented - nearest).p_value


def judge(ledger: Ledger, effects: Mapping[str, Sequence[float]]) -> dict[str, Judgement]:
    """A verdict on every claim from its effects over seeds.

    Args:
        effects: claim → one number a seed, see :class:`Evidence`; none when it was not run.
    """
    tested = {c.id: interval_and_p(c, effects.get(c.id, ())) for c in ledger.claims}
    corrected = holm([p for _, p in tested.values()])
    return {
        claim.id: Judgement(
            *tested[claim.id], float(p), *_verdict(claim, *tested[claim.id], p, ledger)
        )
        for claim, p in zip(ledger.claims, corrected, strict=True)
    }


def _verdict(
    claim: Claim, interval: Interval, p_value: float, p_holm: float, ledger: Ledger
) -> tuple[str, str]:
    """The verdict, and the reason for it in a few words."""
    if interval.n == 0 or interval.n < claim.min_seeds:
        return NOT_TESTED, f"{interval.n} seeds, {claim.min_seeds} needed"
    effect = interval.mean if claim.direction == "higher" else -interval.mean
    holds = _holds(claim, effect)
    large = claim.comparison != "better" or effect >= margin(claim)
    if claim.exact:
        if holds and not large:
            return INCONCLUSIVE, "smaller than matters"
        return (SUPPORTED if holds else CONTRADICTED), "counted exactly, no spread"
    if math.isnan(p_holm):
        return INCONCLUSIVE, "the same in every seed: no spread to judge by"
    if not p_holm < 1 - ledger.confidence:
        if p_value < 1 - ledger.confidence:
            alone = f"shown if it were the only claim (p = {p_value:.2g})"
            return INCONCLUSIVE, f"{alone}, not among several (corrected p = {p_holm:.2g})"
        return INCONCLUSIVE, f"the seeds differ too much (p = {p_value:.2g})"
    if holds and not large:
        return INCONCLUSIVE, "shown, but smaller than matters"
    p = f"corrected p = {p_holm:.2g}" if p_holm >= 1e-4 else "corrected p < 0.0001"
    return (SUPPORTED if holds else CONTRADICTED), p


# ------------------------------------------------------------------------------- the table


def published_effect(published: Published | None, table: pd.DataFrame, claim: Claim) -> float:
    """The paper's effect on the same scale as :func:`shown`; NaN where it prints none.

    Raises:
        UserError: a selection finds no row.
    """
    if published is None:
        return math.nan
    if published.ratio is not None:
        return shown(claim, math.log(published.ratio / claim.expected_ratio))
    means = []
    for selection in (published.treatment, published.baseline):
        for cell in cells(selection):
            if matching(table, {k: str(v) for k, v in cell.items()}).empty:
                raise UserError(
                    f"claim {claim.id}: no published row with {in_words(cell)}; correct claims.yaml"
                )
        rows = [matching(table, {k: str(v) for k, v in cell.items()}) for cell in cells(selection)]
        values = np.concatenate([r["value"].to_numpy(float) for r in rows])
        means.append(np.log(values).mean() if claim.scale == "ratio" else values.mean())
    effect = means[0] - means[1]
    return shown(claim, effect - math.log(claim.expected_ratio))


def shown(claim: Claim, effect: float) -> float:
    """An effect as tables show it: relative change (−0.05 is 5 % less) or difference."""
    return math.expm1(effect) if claim.scale == "ratio" else effect


def verdicts(
    ledger: Ledger,
    sources: Mapping[str, pd.DataFrame],
    published: pd.DataFrame,
    scale: str,
    scales: Mapping[str, str] = MappingProxyType({}),
    floors: Mapping[str, pd.DataFrame] = MappingProxyType({}),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The verdict table and the numbers behind it.

    Args:
        sources: source → frame; a source may be empty or absent.
        published: published.csv, every cell as text.
        scale: at what scale all of this was run, in words.
        scales: source → its own scale, where that differs.
        floors: source → what known text scores there, see :func:`sighted`.

    Returns:
        claims (``COLUMNS``) and evidence (``EVIDENCE_COLUMNS``).
    """
    nothing = pd.DataFrame()
    found = {
        c.id: sighted(c, evidence(c, sources.get(c.source, nothing)), floors.get(c.source, nothing))
        for c in ledger.claims
    }
    judged = judge(ledger, {name: e.effects for name, e in found.items()})
    rows = []
    for claim in ledger.claims:
        seen, judgement = found[claim.id], judged[claim.id]
        own = scales.get(claim.source, scale)
        rows.append(_row(claim, seen, judgement, own, published))
    numbers = pd.concat([e.rows[EVIDENCE_COLUMNS] for e in found.values()], ignore_index=True)
    return pd.DataFrame(rows, columns=COLUMNS), numbers


def _row(
    claim: Claim, seen: Evidence, judgement: Judgement, scale: str, published: pd.DataFrame
) -> dict:
    interval = judgement.interval
    means = seen.rows.groupby("side")["value"].mean() if len(seen.rows) else {}
    first = seen.rows.iloc[0] if len(seen.rows) else {}
    source = claim.published.source if claim.published else ""
    return {
        "claim": claim.id,
        "title": claim.title,
        "wording": " ".join(claim.wording.split()),
        "task": claim.task,
        "scale": scale,
        "source": claim.source,
        "metric": claim.metric,
        **{key: first.get(key, "") for key in ("split", "sampling", "extractor")},
        "comparison": claim.comparison,
        "direction": claim.direction,
        "unit": "relative change" if claim.scale == "ratio" else "difference",
        "expected_ratio": claim.expected_ratio,
        "matters": claim.matters,
        "exact": claim.exact,
        "effect": shown(claim, interval.mean),
        "low": shown(claim, interval.low),
        "high": shown(claim, interval.high),
        "n_seeds": interval.n,
        "min_seeds": claim.min_seeds,
        "p_value": judgement.p_value,
        "p_holm": judgement.p_holm,
        "verdict": judgement.verdict,
        "reason": seen.missing or judgement.reason,
        "treatment": in_words(claim.treatment),
        "baseline": in_words(claim.baseline),
        "treatment_mean": means.get("treatment", math.nan),
        "baseline_mean": means.get("baseline", math.nan),
        "published_effect": published_effect(claim.published, published, claim),
        "published_source": source,
        "figure": claim.figure or "",
    }
