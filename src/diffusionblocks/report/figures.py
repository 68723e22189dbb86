"""Every figure of the image report: tables in, a matplotlib Figure out.

Each figure is a pair: ``<name>_data`` selects and averages rows of the tables into the frame that
the figure shows, and ``<name>`` draws that frame, so that the CSV saved beside a figure holds
exactly what was drawn.
"""

import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from ..errors import UserError
from ..noise import TruncatedLogNormal
from ..partition import partition
from . import setting_number
from .statistics import (
    CONFIGURATION,
    METHOD_NAMES,
    describe,
    even_layers,
    main_grid,
    measured_on,
    sampling_names,
    signed,
    t_interval,
)
from .style import (
    BLOCK_DASHES,
    FLOOR_COLOUR,
    LOOK,
    NAMES,
    ORDER,
    band,
    block_colours,
    blocks_axis,
    empty,
    facets,
    finish,
    interval_note,
    log_axis,
    not_below_zero,
    over_seeds,
    points,
    present,
    styled,
    x_label,
)

METRIC_LABELS = {
    "fid": "Fréchet distance\n(lower is better)",
    "kid": "Kernel distance\n(lower is better)",
    "precision": "Precision, share\n(higher is better)",
    "recall": "Recall, share\n(higher is better)",
    "label_accuracy": "Label accuracy, share\n(higher is better)",
    "nearest_train_distance_ratio": "Nearest-image distance,\nsamples ÷ held-out",
}


def _strategies(frame: pd.DataFrame) -> list[str]:
    found = set(frame["partition"])
    return [s for s in ORDER if s in found]


def _split_name(split: str) -> str:
    return f"against the {split} split" if split else ""


SPLITS = ("train", "test")


def _panel_title(row: pd.Series) -> str:
    return "\n".join(t for t in (_split_name(row["split"]), row["sampling_name"]) if t)


# ---------------------------------------------------------------- noise ranges (Figure 4)


def noise_law(setting: dict[str, str]) -> TruncatedLogNormal:
    """The truncated log-normal law of σ out of the settings."""
    return TruncatedLogNormal(
        **{k: setting_number(setting, k) for k in ("P_mean", "P_std", "sigma_min", "sigma_max")}
    )


def noise_ranges_data(setting: dict[str, str], training: pd.DataFrame) -> pd.DataFrame:
    """The range of every block, for every strategy and B in the sweep, and the mass it holds.

    Returns:
        columns partition, blocks, block (0 is the highest noise), sigma_lo, sigma_hi (data
        units), mass (share of the density), P_mean, P_std, sigma_min, sigma_max.
    """
    noise = noise_law(setting)
    law = {k: getattr(noise, k) for k in ("P_mean", "P_std", "sigma_min", "sigma_max")}
    blockwise = training[training["method"] != "end_to_end"]
    rows = []
    for strategy in _strategies(blockwise):
        for B in sorted(set(blockwise["blocks"])):
            for b, r in enumerate(partition(strategy, noise, int(B))):
                mass = float(noise.cdf(r.sigma_hi) - noise.cdf(r.sigma_lo))
                rows.append(
                    {"partition": strategy, "blocks": int(B), "block": b}
                    | {"sigma_lo": r.sigma_lo, "sigma_hi": r.sigma_hi, "mass": mass}
                    | law
                )
    columns = ["partition", "blocks", "block", "sigma_lo", "sigma_hi", "mass", *law]
    return pd.DataFrame(rows, columns=columns)


def _percent(share: float) -> str:
    """A share as a percentage that claims neither all nor nothing unless it is."""
    percent = 100 * share
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.0f} %" if percent >= 0.95 else f"{percent:.1g} %"


@styled
def noise_ranges(data: pd.DataFrame) -> Figure:
    """The density of σ, cut into the blocks' ranges: a column a strategy, a row a B.

    After the paper's Figure 4.
    """
    title = "Which noise levels each block owns"
    if data.empty:
        return empty(title, "This preset trains no block-wise run.")
    first = data.iloc[0]
    noise = TruncatedLogNormal(first.P_mean, first.P_std, first.sigma_min, first.sigma_max)
    strategies, counts = _strategies(data), sorted(set(data["blocks"]))
    width = max(7.0, 1.0 + 3.0 * len(strategies))
    figure = Figure(figsize=(width, 0.7 + 1.25 * len(counts)))
    grid = figure.subplots(len(counts), len(strategies), sharex=True, sharey=True, squeeze=False)
    top = float(noise.density(torch.tensor(math.exp(noise.P_mean)).clamp(first.sigma_min)))
    for i, B in enumerate(counts):
        for j, strategy in enumerate(strategies):
            ax = grid[i, j]
            ranges = data[(data["partition"] == strategy) & (data["blocks"] == B)]
            for (_, r), colour in zip(ranges.iterrows(), block_colours(B), strict=True):
                sigma = torch.logspace(
                    math.log10(r.sigma_lo), math.log10(r.sigma_hi), 200, dtype=torch.float64
                )
                # Rounding may push the ends out of the law's support, where it is zero.
                sigma = sigma.clamp(first.sigma_min, first.sigma_max)
                density = noise.density(sigma).numpy()
                ax.fill_between(sigma, density, color=colour, alpha=0.75, lw=0)
                ax.axvspan(r.sigma_lo, r.sigma_hi, color=colour, alpha=0.22, lw=0)
                ax.axvline(r.sigma_hi, color="#555555", lw=0.6)
                share = math.log(r.sigma_hi / r.sigma_lo) / math.log(
                    first.sigma_max / first.sigma_min
                )
                # About 0.45 inch of a three-inch axes is needed for "100 %".
                if share > 0.15:
                    middle = math.sqrt(r.sigma_lo * r.sigma_hi)
                    text = _percent(r.mass)
                    ax.text(middle, 1.3 * top, text, ha="center", va="center", fontsize=8)
            ax.set_xscale("log")
            ax.set_xlim(first.sigma_min, first.sigma_max)
            ax.set_ylim(0, 1.5 * top)
            ax.grid(False)
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            if i == 0:
                ax.set_title(NAMES[strategy])
            if i == len(counts) - 1:
                ax.set_xlabel("noise level σ (data units)")
            if j == 0:
                ax.set_ylabel(f"B = {B}\ndensity per ln σ", fontsize=9)
    finish(
        figure,
        title,
        "Colour: one block each, dark is block 0 (highest noise, first layers). Numbers: the share "
        "of training noise levels that falls in a range, where there is room to print it. "
        f"ln σ ~ N({signed(noise.P_mean, 'g')}, {noise.P_std:g}²) on [{noise.sigma_min:g}, "
        f"{noise.sigma_max:g}]. Overlap not drawn.",
    )
    return figure


# ---------------------------------------------------------------- scores


def score_data(
    scores: pd.DataFrame, floors: pd.DataFrame, metrics: Sequence[str] = ("fid",)
) -> pd.DataFrame:
    """Scores of the main grid and of end to end over seeds, and the real-data floors.

    Returns:
        columns kind (run or floor), metric, split, sampling, sampling_name, method, blocks,
        partition, overlap, extractor, mean, low, high, n_seeds, values (seed by seed).
    """
    grid = main_grid(scores[scores["metric"].isin(metrics)])
    keys = ["metric", "split", "sampling", "method", "blocks", "partition", "overlap", "extractor"]
    runs = over_seeds(grid, keys).assign(kind="run")
    floor = floors[floors["metric"].isin(metrics)].assign(
        mean=lambda f: f["value"], kind="floor", sampling="", method="", partition=""
    )
    floor = floor.assign(values=floor["value"].astype(str))
    columns = ["kind", *keys, "mean", "low", "high", "n_seeds", "values"]
    # An empty frame has no types of its own and would change those of the other.
    filled = [frame for frame in (runs, floor) if len(frame)] or [runs]
    both = pd.concat([frame.reindex(columns=columns) for frame in filled])
    return both.assign(sampling_name=both["sampling"].map(sampling_names(scores)).fillna(""))


def _score_axes(ax: Axes, runs: pd.DataFrame, floor: pd.DataFrame) -> None:
    """One panel of score against B: strategies, end to end as a band, the floor as a line."""
    whole = runs[runs["method"] == "end_to_end"]
    if len(whole):
        band(ax, whole.iloc[0], "end_to_end", NAMES["end_to_end"] + " (B = 1)")
    strategies = _strategies(runs[runs["method"] != "end_to_end"])
    for k, strategy in enumerate(strategies):
        rows = runs[runs["partition"] == strategy].sort_values("blocks")
        # Neighbouring strategies stand side by side instead of on top of each other.
        shift = 0.09 * (k - (len(strategies) - 1) / 2)
        points(ax, rows["blocks"] + shift, rows, strategy, NAMES[strategy])
    if len(floor):
        ax.axhline(floor["mean"].iloc[0], color=FLOOR_COLOUR, ls=(0, (1, 1.5)), lw=2)
        ax.lines[-1].set_label("floor: real held-out images")
    blocks_axis(ax, runs.loc[runs["method"] != "end_to_end", "blocks"])


@styled
def score_vs_blocks(data: pd.DataFrame, setting: dict[str, str], scores: pd.DataFrame) -> Figure:
    """Fréchet distance against B: a row a way of sampling, a column a split."""
    title = "Fréchet distance against the number of blocks"
    runs, floors = data[data["kind"] == "run"], data[data["kind"] == "floor"]
    if runs.empty:
        return empty(title, "This preset has no Fréchet distances.")
    figure = facets(
        runs,
        ("sampling", present(runs, "sampling")),
        ("split", present(runs, "split", SPLITS)),
        (3.7, 2.6),
        lambda ax, here: _score_axes(ax, here, floors[floors["split"] == here["split"].iloc[0]]),
        lambda _: METRIC_LABELS["fid"],
        _panel_title,
    )
    x_label(figure, "number of blocks B")
    not_below_zero(figure.axes, runs)
    overlaps = sorted(set(runs.loc[runs["method"] != "end_to_end", "overlap"]))
    at = f" Overlap {overlaps[0]:g}." if overlaps else ""
    note = f"{measured_on(setting, scores[scores['metric'] == 'fid'])}. "
    finish(figure, title, note + interval_note(runs["n_seeds"]) + " Black dots: single seeds." + at)
    return figure


OTHER_METRICS = ("kid", "precision", "recall", "label_accuracy", "nearest_train_distance_ratio")


@styled
def other_scores(data: pd.DataFrame, setting: dict[str, str], scores: pd.DataFrame) -> Figure:
    """The other scores against B: a row a metric (test split), a column a way of sampling."""
    title = "Other scores against the number of blocks"
    data = data[data["split"] != "train"]
    runs, floors = data[data["kind"] == "run"], data[data["kind"] == "floor"]
    if runs.empty:
        return empty(title, "This preset has no scores other than the Fréchet distance.")
    metrics = present(runs, "metric", OTHER_METRICS)
    figure = facets(
        runs,
        ("metric", metrics),
        ("sampling", present(runs, "sampling")),
        (3.7, 1.8),
        lambda ax, here: _score_axes(ax, here, floors[floors["metric"] == here["metric"].iloc[0]]),
        METRIC_LABELS.__getitem__,
        lambda row: row["sampling_name"] if row["metric"] == metrics[0] else "",
    )
    x_label(figure, "number of blocks B")
    note = f"{measured_on(setting, scores[scores['metric'].isin(metrics)])}; test split where "
    note += "a split applies. "
    finish(figure, title, note + interval_note(runs["n_seeds"]) + " Black dots: single seeds.")
    return figure


# ---------------------------------------------------------------- overlap


def _varied(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Block-wise rows whose configuration was run at two or more values of a column."""
    others = [c for c in CONFIGURATION if c != column]
    blockwise = frame[frame["method"] != "end_to_end"]
    if blockwise.empty:
        return blockwise
    return blockwise[blockwise.groupby(others)[column].transform("nunique") > 1]


def overlap_data(scores: pd.DataFrame, metric: str = "fid") -> pd.DataFrame:
    """A metric over seeds for the configurations that were run at several overlaps."""
    varied = _varied(scores[scores["metric"] == metric], "overlap")
    keys = ["split", "sampling", *CONFIGURATION]
    table = over_seeds(varied, keys)
    return table.assign(sampling_name=table["sampling"].map(sampling_names(scores)))


@styled
def overlap(data: pd.DataFrame, setting: dict[str, str], scores: pd.DataFrame) -> Figure:
    """Fréchet distance against the overlap γ: a row a way of sampling, a column a split."""
    title = "Does training each block a little beyond its range help?"
    if data.empty:
        return empty(title, "This preset has no two runs that differ in their overlap alone.")
    figure = facets(
        data,
        ("sampling", present(data, "sampling")),
        ("split", present(data, "split", SPLITS)),
        (3.7, 2.5),
        _overlap_axes,
        lambda _: METRIC_LABELS["fid"],
        _panel_title,
    )
    x_label(figure, "overlap γ (no unit)")
    not_below_zero(figure.axes, data)
    note = f"{measured_on(setting, scores[scores['metric'] == 'fid'])}. "
    finish(figure, title, note + interval_note(data["n_seeds"]) + " Black dots: single seeds.")
    return figure


def _overlap_axes(ax: Axes, here: pd.DataFrame) -> None:
    others = [c for c in CONFIGURATION if c != "overlap"]
    for k, (names, rows) in enumerate(here.groupby(others, sort=False)):
        named = dict(zip(others, names, strict=True))
        label = describe(named | {"overlap": 0}).replace(", overlap 0", "")
        rows = rows.sort_values("overlap")
        points(ax, rows["overlap"], rows, named["partition"], label, BLOCK_DASHES[k % 4])
    ax.set_xticks(sorted(set(here["overlap"])))
    ax.margins(x=0.15)


# ---------------------------------------------------------------- methods


def methods_data(scores: pd.DataFrame, metric: str = "fid") -> pd.DataFrame:
    """Every seed of the configurations run both ways, independent and interleaved.

    End to end comes along as the yardstick; columns seed and value.
    """
    measured = scores[scores["metric"] == metric]
    both = _varied(measured, "method")
    if both.empty:
        return both.assign(sampling_name=[])
    rows = pd.concat([measured[measured["method"] == "end_to_end"], both])
    columns = ["split", "sampling", *CONFIGURATION, "seed", "value"]
    return rows[columns].assign(sampling_name=rows["sampling"].map(sampling_names(scores)))


@styled
def methods(data: pd.DataFrame, setting: dict[str, str], scores: pd.DataFrame) -> Figure:
    """End to end, independent and interleaved side by side, seeds joined by thin lines."""
    title = "Blocks trained alone against blocks trained in turn"
    if data.empty:
        return empty(title, "This preset has no configuration that was trained both ways.")
    figure = facets(
        data,
        ("sampling", present(data, "sampling")),
        ("split", present(data, "split", SPLITS)),
        (3.7, 2.5),
        _method_axes,
        lambda _: METRIC_LABELS["fid"],
        _panel_title,
    )
    not_below_zero(figure.axes, data.assign(values=data["value"].astype(str)))
    blockwise = data[data["method"] == "blockwise_independent"].drop_duplicates(CONFIGURATION)
    note = f"{measured_on(setting, scores[scores['metric'] == 'fid'])}; block-wise runs: "
    note += "; ".join(describe(row) for row in blockwise.to_dict("records")) + ". "
    counts = data.groupby(["split", "sampling", *CONFIGURATION])["seed"].nunique()
    finish(figure, title, note + interval_note(counts) + " Thin lines join the same seed.")
    return figure


def _method_axes(ax: Axes, here: pd.DataFrame) -> None:
    """A place on x for each method; configurations stand beside each other within it."""
    places = [m for m in METHOD_NAMES if m in set(here["method"])]
    configuration = [c for c in CONFIGURATION if c != "method"]
    blockwise = here[here["method"] != "end_to_end"].groupby(configuration, sort=False)
    for k, (_, runs) in enumerate(blockwise):
        rows = pd.concat([here[here["method"] == "end_to_end"], runs])
        x = rows["method"].map(places.index) + 0.12 * (k - (blockwise.ngroups - 1) / 2)
        for _, seed in rows.assign(x=x).sort_values("x").groupby("seed"):
            ax.plot(seed["x"], seed["value"], color="#999999", lw=0.8, zorder=1)
        for method, of in rows.assign(x=x).groupby("method", sort=False):
            points(ax, of["x"].iloc[:1], over_seeds(of, ["method"]), method, line="none")
    ax.set_xticks(range(len(places)), [NAMES[m].replace(" blocks", "") for m in places])
    ax.margins(x=0.15)


# ---------------------------------------------------------------- training


def training_curves_data(curves: pd.DataFrame, strategy: str = "equal_mass") -> pd.DataFrame:
    """Loss and gradient norm over training of end to end and one strategy's main grid.

    Returns:
        columns quantity (loss or grad_norm), blocks, block, iteration, mean, low, high, n_seeds.
    """
    grid = main_grid(curves)
    grid = grid[(grid["partition"] == strategy) | (grid["method"] == "end_to_end")]
    keys = ["blocks", "block", "iteration"]
    tables = [
        over_seeds(grid, keys, value=quantity).assign(quantity=quantity)
        for quantity in ("loss", "grad_norm")
    ]
    columns = ["quantity", *keys, "mean", "low", "high", "n_seeds"]
    return pd.concat(tables)[columns].sort_values(columns[:4], ignore_index=True)


@styled
def training_curves(data: pd.DataFrame, strategy: str = "equal_mass") -> Figure:
    """Loss above and gradient norm below, a column a B, a line a block."""
    title = f"Loss and gradient norm of every block over training ({NAMES[strategy]})"
    if data.empty:
        return empty(title, "This preset recorded no training curves.")
    counts = sorted(set(data["blocks"]))
    labels = {
        "loss": "training loss\n(weighted squared error)",
        "grad_norm": "gradient norm\n(before clipping)",
    }
    figure = Figure(figsize=(max(7.0, 1.2 + 2.0 * len(counts)), 4.4))
    grid = figure.subplots(2, len(counts), sharex=True, sharey="row", squeeze=False)
    for i, (quantity, label) in enumerate(labels.items()):
        shown = data[(data["quantity"] == quantity) & (data["mean"] > 0)]
        for j, B in enumerate(counts):
            ax = grid[i, j]
            colours = block_colours(counts[-1])[:B] if B > 1 else [LOOK["end_to_end"][0]]
            for b, colour in enumerate(colours):
                rows = shown[(shown["blocks"] == B) & (shown["block"] == b)]
                name = NAMES["end_to_end"] if B == 1 else f"block {b}"
                name += " (highest noise)" if B > 1 and b == 0 else ""
                dash = BLOCK_DASHES[b % 4]
                ax.plot(rows["iteration"], rows["mean"], color=colour, ls=dash, label=name, lw=1.4)
                # An interval may reach below zero, where a logarithmic axis has no place.
                low = rows["low"].clip(lower=shown["mean"].min() / 10)
                ax.fill_between(rows["iteration"], low, rows["high"], color=colour, alpha=0.2, lw=0)
            ax.set_yscale("log")
            if i == 0:
                ax.set_title(f"B = {B}")
            else:
                ax.set_xlabel("iteration (updates\nof a block)", fontsize=9)
            if j == 0:
                ax.set_ylabel(label)
        if len(shown):
            _loss_limits(grid[i, 0], shown)
    note = "Loss: w(σ)·(D − y)², mean over pixels, without unit; each block sees its own noise "
    note += "range, so its level differs from its neighbours'. Gradient norm: Euclidean, over "
    note += "the parameters of the block. Values are averages of consecutive iterations. "
    finish(figure, title, note + interval_note(data["n_seeds"]))
    return figure


def _loss_limits(ax: Axes, shown: pd.DataFrame) -> None:
    """Fit a logarithmic axis to the means: few seeds have intervals of many decades."""
    low, high = shown["mean"].min(), shown["mean"].max()
    ax.set_ylim(low / 1.5, high * 1.5)
    log_axis(ax.yaxis, [low / 1.5, high * 1.5])


# ---------------------------------------------------------------- samples


def sample_grid_data(scores: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The first seed's picture of every configuration and way of sampling, end to end first.

    Args:
        scores: rows of ``scores.csv``.
        folder: where ``<run>__<sampling>.png`` lie.

    Returns:
        columns sampling, run, file (name of the PNG), label, fid (test split); runs without a
        picture are left out.
    """
    first = scores.sort_values("seed", kind="stable").drop_duplicates([*CONFIGURATION, "sampling"])
    place = {
        "sampling": present(scores, "sampling").index,
        "method": list(METHOD_NAMES).index,
        "partition": ["", *ORDER].index,
    }
    first = first.sort_values(
        ["sampling", "method", "partition", "blocks", "layers_per_block", "overlap"],
        key=lambda column: column.map(place[column.name]) if column.name in place else column,
    )
    fid = scores[(scores["metric"] == "fid") & (scores["split"] == "test")]
    fid = fid.set_index(["run", "sampling"])["value"]
    rows = [
        {"sampling": row["sampling"], "run": row["run"]}
        | {"file": f"{row['run']}__{row['sampling']}.png", "label": describe(row)}
        | {"fid": fid.get((row["run"], row["sampling"]), math.nan)}
        for row in first.to_dict("records")
    ]
    table = pd.DataFrame(rows, columns=["sampling", "run", "file", "label", "fid"])
    return table[[(Path(folder) / name).is_file() for name in table["file"]]]


@styled
def sample_grid(data: pd.DataFrame, folder: Path) -> Figure:
    """Samples of every configuration side by side; each way of sampling starts a new row."""
    title = "Samples, from the same noise and labels"
    if data.empty:
        return empty(title, "The tables folder has no pictures of samples.")
    pictures = {name: _picture(Path(folder) / name) for name in data["file"]}
    aspect = max(p.shape[0] / p.shape[1] for p in pictures.values())
    groups = list(data.groupby("sampling", sort=False))
    columns, wide = min(4, max(len(rows) for _, rows in groups)), 2.6
    lines = [
        (sampling, rows.iloc[at : at + columns])
        for sampling, rows in groups
        for at in range(0, len(rows), columns)
    ]
    figure = Figure(figsize=(wide * max(columns, 2), len(lines) * (wide * aspect + 0.65)))
    grid = figure.subplots(len(lines), columns, squeeze=False)
    for axes, (sampling, rows) in zip(grid, lines, strict=True):
        for ax, (_, row) in zip(axes, rows.iterrows(), strict=False):
            ax.imshow(pictures[row["file"]], cmap="gray", interpolation="nearest")
            score = "" if math.isnan(row["fid"]) else f", Fréchet distance {row['fid']:.3g}"
            ax.set_title(textwrap.fill(row["label"], 36) + f"\n{sampling}{score}", fontsize=8.5)
        for ax in axes:
            ax.set_axis_off()
    finish(
        figure,
        title,
        "A column of a picture is a class. One seed of each configuration, the first, not chosen "
        "by eye. Fréchet distance of that seed against the test split.",
    )
    return figure


def _picture(path: Path) -> np.ndarray:
    """Pixels of a PNG, [H, W] or [H, W, C]."""
    try:
        return matplotlib.image.imread(path, format="png")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole PNG ({error}); delete it and build the tables again"
        ) from None


# ---------------------------------------------------------------- cost of sampling


def sampling_cost_data(sampling: pd.DataFrame) -> pd.DataFrame:
    """Speed against B over seeds, and the ratio to the same seed's end-to-end run.

    Strategies share their layer passes, so the runs of one seed and B are averaged first.

    Returns:
        columns quantity (trajectories_per_second or ratio), sampling, sampling_name, blocks,
        mean, low, high, n_seeds, values.
    """
    grid = main_grid(sampling)
    keys = ["sampling", "blocks"]
    speed = grid.groupby([*keys, "seed"], sort=False)["trajectories_per_second"].mean()
    speed = speed.rename("value").reset_index()
    whole = speed[speed["blocks"] == 1].set_index(["sampling", "seed"])["value"].rename("whole")
    ratio = speed.merge(whole.reset_index(), on=["sampling", "seed"])
    ratio = ratio.assign(value=ratio["value"] / ratio["whole"])
    tables = [
        over_seeds(frame, keys).assign(quantity=quantity)
        for quantity, frame in (("trajectories_per_second", speed), ("ratio", ratio))
    ]
    table = pd.concat(tables, ignore_index=True).sort_values("blocks", kind="stable")
    return table.assign(sampling_name=table["sampling"].map(sampling_names(sampling)))


@styled
def sampling_cost(data: pd.DataFrame, setting: dict[str, str]) -> Figure:
    """Images a second on the left, speed-up over end to end on the right with the ideal B."""
    title = "What sampling costs against the number of blocks"
    if data.empty:
        return empty(title, "This preset recorded no sampling times.")
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
    figure = Figure(figsize=(8.4, 3.2))
    axes = figure.subplots(1, 2)
    panels = {
        "trajectories_per_second": "sampled images per second",
        "ratio": "speed-up over B = 1",
    }
    for ax, (quantity, label) in zip(axes, panels.items(), strict=True):
        here = data[data["quantity"] == quantity]
        for k, (name, rows) in enumerate(here.groupby("sampling_name", sort=False)):
            # A sweep without a baseline has no ratio: its columns hold no number at all.
            spread = np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
            spread = spread.astype(float)
            ax.errorbar(
                rows["blocks"],
                rows["mean"],
                yerr=None if np.isnan(spread).all() else np.nan_to_num(spread),
                color=colours[k % 4],
                marker="o^DP"[k % 4],
                ls=BLOCK_DASHES[k % 4],
                capsize=3,
                label=name,
            )
        if quantity == "ratio" and len(here):
            blocks = np.array(sorted(set(here["blocks"])))
            ax.plot(blocks, blocks, color=FLOOR_COLOUR, ls=(0, (1, 1.5)), lw=2, label="ideal: B")
        blocks_axis(ax, data["blocks"])
        ax.set_ylim(bottom=0)
        ax.set_xlabel("number of blocks B")
        ax.set_ylabel(label)
    note = f"Device: {setting.get('device', 'not recorded')}. "
    finish(figure, title, note + interval_note(data["n_seeds"]))
    return figure


# ---------------------------------------------------------------- validation loss


def validation_ratio_data(validation: pd.DataFrame) -> pd.DataFrame:
    """Held-out denoising loss of a band over the same seed's end-to-end loss there.

    Returns:
        columns blocks, partition, overlap, band, sigma_lo, sigma_hi, mean, low, high,
        n_seeds, values; the ratio has no unit.
    """
    grid = main_grid(validation)
    whole = grid.loc[grid["method"] == "end_to_end", ["seed", "band", "loss"]]
    ratio = grid[grid["method"] != "end_to_end"].merge(
        whole.rename(columns={"loss": "whole"}), on=["seed", "band"]
    )
    ratio = ratio.assign(value=ratio["loss"] / ratio["whole"])
    keys = ["blocks", "partition", "overlap", "band", "sigma_lo", "sigma_hi"]
    return over_seeds(ratio, keys).sort_values(["blocks", "partition", "band"], ignore_index=True)


@styled
def validation_ratio(data: pd.DataFrame, setting: dict[str, str]) -> Figure:
    """Loss relative to end to end over σ: a panel a B, a line a strategy, its cuts as ticks."""
    title = "Held-out denoising loss of each noise band, relative to end to end"
    if data.empty:
        return empty(title, "This preset has no seed with both end-to-end and block-wise losses.")
    noise = noise_law(setting)
    counts = sorted(set(data["blocks"]))
    columns = min(2, len(counts))
    rows_of_axes = math.ceil(len(counts) / columns)
    figure = Figure(figsize=(max(6.4, 0.8 + 3.8 * columns), 0.4 + 2.5 * rows_of_axes))
    grid = figure.subplots(rows_of_axes, columns, sharex=True, sharey=True, squeeze=False)
    for ax in list(grid.flat)[len(counts) :]:
        ax.remove()
    for k, (ax, B) in enumerate(zip(grid.flat, counts, strict=False)):
        ax.axhline(1, color=LOOK["end_to_end"][0], lw=1.4, label=NAMES["end_to_end"])
        here = data[data["blocks"] == B]
        for height, strategy in enumerate(_strategies(here)):
            colour, marker, dash = LOOK[strategy]
            rows = here[here["partition"] == strategy].sort_values("sigma_lo")
            sigma = np.sqrt(rows["sigma_lo"] * rows["sigma_hi"])
            ax.plot(
                sigma,
                rows["mean"],
                color=colour,
                marker=marker,
                ls=dash,
                ms=4,
                label=NAMES[strategy],
            )
            low = rows["low"].clip(lower=data["mean"].min() / 10)
            ax.fill_between(sigma, low, rows["high"], color=colour, alpha=0.18, lw=0)
            cuts = [r.sigma_lo for r in partition(strategy, noise, int(B))[:-1]]
            at = 0.01 + 0.045 * height
            ax.plot(
                cuts,
                [at + 0.02] * len(cuts),
                "|",
                color=colour,
                ms=9,
                mew=2,
                transform=ax.get_xaxis_transform(),
                label="cuts between blocks (one row a strategy)" if height == 0 else "_",
            )
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_title(f"B = {B}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        if k + columns >= len(counts):
            ax.set_xlabel("noise level σ (data units)")
            ax.tick_params(labelbottom=True)
        if k % columns == 0:
            ax.set_ylabel("loss ÷ end-to-end loss\n(below 1 is better)")
    low, high = min(1, data["mean"].min()) / 1.25, max(1, data["mean"].max()) * 1.25
    grid[0, 0].set_ylim(low, high)
    log_axis(grid[0, 0].yaxis, [low, high])
    note = "Weighted squared error on held-out images, per band of σ, ratio of the same seed. "
    finish(figure, title, note + interval_note(data["n_seeds"]))
    return figure


# ---------------------------------------------------------------- published against measured

PUBLISHED_COLUMNS = (
    "source,version,table,dataset,model,extractor,blocks,partition,layers_per_block,overlap,"
    "split,sampling,value,end_to_end,ratio,low,high,n_seeds"
).split(",")


def _published_overlap(notes: str) -> float:
    found = re.search(r"overlap (\d+(?:\.\d+)?)", notes)
    return float(found.group(1)) if found else math.nan


def _published_layers(layers: str, B: int) -> str:
    """Write "4" of B = 3 blocks out as 4-4-4."""
    return layers if "-" in layers or not layers else "-".join([str(int(float(layers)))] * B)


def published_data(published: pd.DataFrame) -> pd.DataFrame:
    """The paper's Fréchet distances of images, relative to its own end-to-end network.

    The baseline is the end-to-end row of the same version, data set, model and split; tables
    of the paper that print none (its ablations) use the one that another table prints.
    """
    images = published[(published["task"] == "image_generation") & (published["metric"] == "fid")]
    network = ["version", "dataset", "model", "split"]
    whole = images[images["method"] == "end_to_end"].drop_duplicates(network)
    whole = whole[[*network, "value"]].rename(columns={"value": "end_to_end"})
    rows = images[images["method"] == "blockwise"].merge(whole, on=network)
    return rows.assign(
        source="published",
        extractor="inception",
        blocks=rows["blocks"].astype(int),
        overlap=rows["notes"].map(_published_overlap),
        layers_per_block=[
            _published_layers(str(n), int(B))
            for n, B in zip(rows["layers_per_block"], rows["blocks"], strict=True)
        ],
        ratio=rows["value"] / rows["end_to_end"],
        sampling="",
        n_seeds=1,
    ).reindex(columns=PUBLISHED_COLUMNS)


def measured_data(scores: pd.DataFrame, setting: dict[str, str]) -> pd.DataFrame:
    """Our Fréchet distances of independent blocks, relative to end to end of the same seed."""
    fid = scores[scores["metric"] == "fid"]
    keys = ["dataset", "split", "sampling", "extractor"]
    whole = fid.loc[fid["method"] == "end_to_end", [*keys, "seed", "value"]]
    rows = fid[fid["method"] == "blockwise_independent"].merge(
        whole.rename(columns={"value": "end_to_end"}), on=[*keys, "seed"]
    )
    rows = rows.assign(ratio=rows["value"] / rows["end_to_end"])
    table = []
    configuration = ["blocks", "partition", "layers_per_block", "overlap"]
    for names, group in rows.groupby([*keys, *configuration], sort=False):
        interval = t_interval(group["ratio"])
        table.append(
            dict(zip([*keys, *configuration], names, strict=True))
            | {"value": group["value"].mean(), "end_to_end": group["end_to_end"].mean()}
            | {"ratio": interval.mean, "low": interval.low, "high": interval.high}
            | {"n_seeds": interval.n}
        )
    model = f"DiT {setting.get('layers', '?')}×{setting.get('width', '?')}"
    frame = pd.DataFrame(table).assign(source="measured", version="", table="", model=model)
    return frame.reindex(columns=PUBLISHED_COLUMNS)


def published_vs_measured_data(
    scores: pd.DataFrame, published: pd.DataFrame, setting: dict[str, str]
) -> pd.DataFrame:
    """Published and measured ratios to end to end, one row each, sorted alike.

    Scales, data sets and extractors differ, so only the ratios may be compared.
    """
    parts = [published_data(published), measured_data(scores, setting)]
    table = pd.concat([p.astype(object) for p in parts if len(p)], ignore_index=True)
    numbers = ["blocks", "overlap", "value", "end_to_end", "ratio", "low", "high", "n_seeds"]
    table[numbers] = table[numbers].apply(pd.to_numeric)
    rank = table["partition"].map({s: k for k, s in enumerate(ORDER)})
    table = table.assign(_rank=rank)
    uneven = [not even_layers(str(n)) for n in table["layers_per_block"]]
    order = ["blocks", "_rank", "_uneven", "layers_per_block", "overlap", "source", "version"]
    return table.assign(_uneven=uneven).sort_values(order, ignore_index=True)[PUBLISHED_COLUMNS]


@styled
def published_vs_measured(
    data: pd.DataFrame, setting: dict[str, str], scores: pd.DataFrame
) -> Figure:
    """Fréchet distance over end to end's: published hollow, measured filled, a row a set-up."""
    title = "Fréchet distance relative to end to end: published (hollow: DiT-S/2 on CIFAR-10, "
    title += "DiT-L/2 on ImageNet-256, Inception features) and measured (filled: "
    title += measured_on(setting, scores[scores["metric"] == "fid"]) + ")"
    if data.empty:
        return empty(title, "There is neither a published nor a measured score to show.")
    keys = ["blocks", "partition", "uneven", "overlap"]
    data = data.assign(
        uneven=[("" if even_layers(n) else n) for n in data["layers_per_block"].astype(str)]
    )
    rows = list(data.groupby(keys, dropna=False, sort=False).groups)
    splits = [s for s in ("train", "test") if s in set(data["split"])]
    figure = Figure(figsize=(3.6 + 2.7 * len(splits), 0.9 + 0.33 * len(rows)))
    axes = figure.subplots(1, len(splits), sharex=True, sharey=True, squeeze=False)[0]
    names = sampling_names(scores)
    for ax, split in zip(axes, splits, strict=True):
        ax.axvline(1, color=LOOK["end_to_end"][0], lw=1.4, label=NAMES["end_to_end"])
        for y, key in enumerate(rows):
            same = [
                data[k].isna() if isinstance(v, float) and math.isnan(v) else data[k] == v
                for k, v in zip(keys, key, strict=True)
            ]
            here = data[np.logical_and.reduce(same) & (data["split"] == split)]
            for _, row in here.iterrows():
                _ratio_marker(ax, y, row, names)
        ax.set_title(_split_name(split))
        ax.set_xscale("log")
        ax.set_xlabel("ratio to end to end\n(left of 1 is better)")
        ax.grid(axis="y", visible=False)
    for y in [y for y, key in enumerate(rows) if y and key[0] != rows[y - 1][0]]:
        for ax in axes:
            ax.axhline(y - 0.5, color="#999999", lw=0.6)
    axes[0].set_yticks(range(len(rows)), [_row_name(*key) for key in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    # Two seeds can have intervals of many decades; they may leave the picture, means may not.
    smallest, largest = data["ratio"].min(), data["ratio"].max()
    low = 0.95 * max(min(smallest, data["low"].min()), smallest / 1.6)
    high = 1.05 * min(max(largest, data["high"].max()), largest * 1.6)
    axes[0].set_xlim(low, high)
    log_axis(axes[0].xaxis, [low, high])
    measured = data[data["source"] == "measured"]
    note = "Only ratios compare across scales and extractors. Published values have no intervals. "
    finish(figure, title, note + interval_note(measured["n_seeds"]))
    return figure


def _row_name(B: int, strategy: str, uneven: str, overlap: float) -> str:
    gamma = ", overlap not stated" if math.isnan(overlap) else f", overlap {overlap:g}"
    layers = f", layers {uneven}" if uneven else ""
    return f"B = {B}, {NAMES.get(strategy, strategy)}{layers}{gamma}"


#: Published data sets and versions by marker; a hollow marker is always a published value.
_PUBLISHED_MARKERS = {
    ("CIFAR-10", "v2"): "o",
    ("ImageNet-256", "v2"): "s",
    ("CIFAR-10", "v1"): "^",
    ("ImageNet-256", "v1"): "D",
}


def _ratio_marker(ax: Axes, y: float, row: pd.Series, names: dict[str, str]) -> None:
    colour = LOOK.get(row["partition"], LOOK["uniform"])[0]
    if row["source"] == "published":
        version = "" if row["version"] == "v2" else f" ({row['version']})"
        marker = _PUBLISHED_MARKERS.get((row["dataset"], row["version"]), "o")
        ax.plot(
            [row["ratio"]],
            [y - 0.22],
            marker=marker,
            ls="none",
            mfc="none",
            mec="#333333",
            mew=1.4,
            ms=7,
            label=f"published: {row['dataset']}{version}",
            zorder=4,
        )
        return
    k = list(names).index(row["sampling"])
    at = y + 0.08 + 0.24 * k
    spread = np.array([[row["ratio"] - row["low"]], [row["high"] - row["ratio"]]])
    ax.errorbar(
        [row["ratio"]],
        [at],
        xerr=None if np.isnan(spread).any() else spread,
        marker="Ppd*"[k % 4],
        ls="none",
        color=colour,
        ms=6,
        capsize=2,
        lw=1.1,
        label=f"measured, {names[row['sampling']]}",
        zorder=3,
    )
