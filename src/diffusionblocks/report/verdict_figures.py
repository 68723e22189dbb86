"""Figures of the verdict notebook: every claim's effect, and stability over learning rates."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binomtest

from .statistics import METHOD_NAMES
from .style import (
    BLOCK_DASHES,
    empty,
    finish,
    interval_note,
    log_axis,
    over_seeds,
    points,
    present,
    styled,
)

#: Colour of every verdict; its word stands beside it.
VERDICT_COLOURS = {
    "supported": "#0072B2",
    "contradicted": "#D55E00",
    "inconclusive": "#767676",
    "not tested": "#b5b5b5",
}
#: What a learning-rate sweep shows of a run, and how its axis is named.
STABILITY_LABELS = {
    "diverged": "share of runs\nthat diverged",
    "loss_spike_share": "share of training\nwith a loss spike",
    "gradient_tail": "gradient norm,\n99th percentile ÷ median",
}

# ---------------------------------------------------------------- every claim's effect


def effects_data(claims: pd.DataFrame) -> pd.DataFrame:
    """Effects in units of the smallest that matters, positive where the claim wants them.

    Effects of different kinds (relative changes, percentage points) share an axis that way.

    Returns:
        columns claim, title, verdict, effect, low, high, published (all in units of what
        matters), n_seeds; claims without a number here are left out.
    """
    rows = claims[claims["n_seeds"] > 0]
    unit = rows["matters"].where(rows["matters"] > 0, 1.0)
    sign = rows["direction"].map({"higher": 1.0, "lower": -1.0}).astype(float)  # of no rows too
    scaled = {
        name: sign * rows[column] / unit
        for name, column in (
            ("effect", "effect"),
            ("a", "low"),
            ("b", "high"),
            ("published", "published_effect"),
        )
    }
    ends = pd.concat([scaled.pop("a"), scaled.pop("b")], axis=1)
    named = rows[["claim", "title", "verdict", "n_seeds"]]
    return named.assign(**scaled, low=ends.min(axis=1), high=ends.max(axis=1))[
        ["claim", "title", "verdict", "effect", "low", "high", "published", "n_seeds"]
    ].reset_index(drop=True)


@styled
def effects(data: pd.DataFrame) -> Figure:
    """Effects and intervals, a row a claim; published ones hollow."""
    title = "Every claim's effect, in units of the smallest that matters"
    if data.empty:
        return empty(title, "No claim has a number at this scale.")
    figure = Figure(figsize=(9.2, 0.7 + 0.36 * len(data)))
    ax = figure.subplots()
    reach = max(3.0, 1.3 * data[["effect", "published"]].abs().max().max())
    y = np.arange(len(data))[::-1]
    ax.axvspan(-1, 1, color="#eeeeee", lw=0, label="too small to matter")
    ax.axvline(0, color="#555555", lw=1)
    for at, row in zip(y, data.itertuples(), strict=True):
        colour = VERDICT_COLOURS[row.verdict]
        low, high = np.clip([row.low, row.high], -reach, reach)
        ax.plot([low, high], [at, at], color=colour, lw=2.4, solid_capstyle="butt", zorder=2)
    for verdict, rows in data.groupby("verdict", sort=False):
        places = y[rows.index]
        ax.plot(rows["effect"], places, "o", color=VERDICT_COLOURS[verdict], label=verdict, ms=7)
    ax.plot(data["published"], y, "D", mfc="white", mec="black", ms=7, label="published", zorder=4)
    ax.set_xlim(-1.05 * reach, 1.05 * reach)
    ax.set_yticks(y, [f"{row.title} ({row.verdict})" for row in data.itertuples()], fontsize=8)
    ax.set_xlabel("← against the claim    effect ÷ smallest effect that matters    as claimed →")
    note = (
        "Dots and bars: this sweep and its interval over seeds, cut where it leaves the axis. "
        "For claims of equality the effect is measured from the predicted ratio."
    )
    finish(figure, title, note)
    return figure


# ---------------------------------------------------------------- stability over learning rates


def learning_rates_data(stability: pd.DataFrame) -> pd.DataFrame:
    """Measures of stability over seeds for every method and learning rate.

    A share of runs that diverged counts outcomes, yes or no: it has Wilson's interval.

    Returns:
        columns metric, method, blocks, learning_rate_scale and those of
        :func:`~diffusionblocks.report.style.over_seeds`; empty without a sweep of rates.
    """
    # A table without rows, as a sweep without images leaves it, has numbers of no type.
    rows = stability[stability["metric"].isin(STABILITY_LABELS)].astype({"value": float})
    equal = (rows["method"] == "end_to_end") | (rows["partition"] == "equal_mass")
    rows = rows[equal & (rows["overlap"] == 0)]
    swept = rows.groupby(["method", "blocks"])["learning_rate_scale"].transform("nunique") > 1
    keys = ["metric", "method", "blocks", "learning_rate_scale"]
    found = over_seeds(rows[swept], keys).sort_values(keys, ignore_index=True)
    for i, row in found[found["metric"] == "diverged"].iterrows():
        diverged, seeds = round(row["mean"] * row["n_seeds"]), int(row["n_seeds"])
        interval = binomtest(diverged, seeds).proportion_ci(0.95, "wilson")
        found.loc[i, ["low", "high"]] = [interval.low, interval.high]
    return found


@styled
def learning_rates(data: pd.DataFrame) -> Figure:
    """A panel a measure against the learning rate, logarithmic: a line a method."""
    title = "Stability as the learning rate grows"
    if data.empty:
        return empty(title, "This preset trains at one learning rate: run the preset stability.")
    metrics = present(data, "metric", list(STABILITY_LABELS))
    figure = Figure(figsize=(9.4, 2.9))
    for ax, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        here = data[data["metric"] == metric]
        dashes = itertools.cycle(BLOCK_DASHES)
        lines = list(here.groupby(["method", "blocks"], sort=False))
        for place, ((method, B), rows) in enumerate(lines):
            name = METHOD_NAMES[method] + (f", B = {B}" if B > 1 else "")
            # Side by side, or one line's bars would hide the other's.
            aside = 1.08 ** (place - (len(lines) - 1) / 2)
            points(ax, rows["learning_rate_scale"] * aside, rows, method, name, next(dashes))
        ax.set_xscale("log")
        log_axis(ax.xaxis, here["learning_rate_scale"])
        ax.set_xticks(sorted(set(here["learning_rate_scale"])))
        ax.set_xlabel("learning rate ÷ the preset's")
        ax.set_title(STABILITY_LABELS[metric], fontsize=9)
        if metric == "diverged":
            ax.set_ylim(-0.05, 1.05)
    finish(figure, title, interval_note(data["n_seeds"]) + " Of shares of runs: Wilson's.")
    return figure
