"""The house style of every figure: colours, fonts, frames, intervals, and how one is saved.

Colour, marker and dash belong to a strategy or method and are the same in every figure; the
palette is Okabe and Ito's, which readers with any colour vision can tell apart, and no figure
relies on colour alone. Filled markers are measured, hollow ones published.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..files import atomic_path
from .statistics import METHOD_NAMES, STRATEGY_NAMES, t_interval

STYLE = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#555555",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "path",
    # Without a fixed salt the ids inside an SVG, and so its bytes, differ from run to run.
    "svg.hashsalt": "diffusionblocks",
}

#: colour, marker and dash of every strategy and method.
LOOK = {
    "end_to_end": ("#000000", "s", "-"),
    "equal_mass": ("#0072B2", "o", "-"),
    "uniform_log_sigma": ("#D55E00", "^", "--"),
    "uniform_sigma": ("#CC79A7", "D", ":"),
    "uniform": ("#E69F00", "v", "-."),
    "blockwise_independent": ("#0072B2", "o", "-"),
    "blockwise_interleaved": ("#009E73", "P", "--"),
}
FLOOR_COLOUR = "#767676"
BLOCK_DASHES = ["-", "--", ":", "-."]

NAMES = {**STRATEGY_NAMES, **METHOD_NAMES, "uniform": "uniform (kind not stated)"}
ORDER = list(LOOK)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the house style without touching matplotlib's settings outside."""

    @wraps(draw)
    def wrapped(*args, **kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def save(figure: Figure, data: pd.DataFrame, folder: Path, name: str) -> Path:
    """Write <name>.svg, <name>.png and <name>.csv, the data that the figure was drawn from.

    Returns:
        the path of the PNG.
    """
    folder = Path(folder)
    metadata = {"svg": {"Date": None}, "png": {"Software": None}}
    with mpl.rc_context(STYLE):
        for kind in ("svg", "png"):
            with atomic_path(folder / f"{name}.{kind}") as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata[kind])
    with atomic_path(folder / f"{name}.csv") as temporary:
        data.to_csv(temporary, index=False)
    return folder / f"{name}.png"


def block_colours(B: int) -> list:
    """One colour a block, dark for high noise (block 0) to light, ordered also in grey."""
    return [mpl.colormaps["viridis"](t) for t in np.linspace(0.05, 0.9, B)]


def finish(figure: Figure, title: str, note: str) -> None:
    """Put title and legend above the axes and the note below, in room added to the figure.

    Constrained layout lets a title and a legend outside the axes overlap, so both are measured
    here in inches and the axes keep the size that the figure was made with.
    """
    width, height = figure.get_size_inches()
    # Characters that fit on an inch: of the bold title, of the note and of a legend entry.
    title, note = textwrap.fill(title, int(width * 10.2)), textwrap.fill(note, int(width * 14.5))
    entries: dict[str, object] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = 1
    if entries:
        columns = max(1, int(width / (0.65 + 0.074 * max(len(label) for label in entries))))
        columns = min(columns, len(entries))
    title_height = 0.12 + 0.21 * (title.count("\n") + 1)
    legend_height = 0.2 * math.ceil(len(entries) / columns) + (0.1 if entries else 0)
    head, foot = title_height + legend_height, 0.12 + 0.17 * (note.count("\n") + 1)
    total = height + head + foot
    figure.set_size_inches(width, total)
    figure.get_layout_engine().set(rect=(0, foot / total, 1, height / total))
    left = 0.08 / width
    figure.suptitle(title, x=left, y=1 - 0.08 / total, ha="left", va="top").set_in_layout(False)
    figure.text(left, 0.06 / total, note, ha="left", va="bottom", fontsize=9, color="#444444")
    if entries:
        figure.legend(
            entries.values(),
            entries.keys(),
            loc="upper left",
            bbox_to_anchor=(0, 1 - title_height / total),
            ncols=columns,
            borderaxespad=0.2,
        )


def interval_note(seeds: Iterable[int]) -> str:
    """What the error bars and bands of a figure are, given how many seeds lie behind each."""
    counts = sorted({int(n) for n in seeds if n > 0})
    if not counts:
        return "Nothing was measured."
    if counts[-1] < 2:
        return "One seed: no intervals can be given."
    many = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[-1]}"
    return f"Bars and bands: 95 % t intervals over {many} seeds."


def empty(title: str, reason: str) -> Figure:
    """A figure that says why there is nothing to show."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 1.0))
        finish(figure, title, "")
        figure.text(0.01, 0.35, textwrap.fill(reason, 85), ha="left", va="center")
    return figure


def over_seeds(frame: pd.DataFrame, keys: Sequence[str], value: str = "value") -> pd.DataFrame:
    """Mean, low, high (95 % t) and n_seeds of a column for every combination of the keys."""
    rows = []
    for names, group in frame.groupby(list(keys), dropna=False, sort=False):
        interval = t_interval(group[value])
        rows.append(
            dict(zip(keys, names, strict=True))
            | {"mean": interval.mean, "low": interval.low, "high": interval.high}
            | {"n_seeds": interval.n, "values": " ".join(f"{v:.6g}" for v in group[value])}
        )
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high", "n_seeds", "values"])


def points(
    ax: Axes,
    x,
    rows: pd.DataFrame,
    look: str | tuple[str, str, str],
    label: str = "_",
    line: str | None = None,
) -> None:
    """Means with error bars and a black dot a seed.

    Args:
        look: of a strategy or method in :data:`LOOK`, or colour, marker and dash.
    """
    colour, marker, dash = LOOK[look] if isinstance(look, str) else look
    x = np.asarray(x, dtype=float)
    spread = np.nan_to_num(np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]]))
    linestyle = dash if line is None else line
    ax.errorbar(
        x,
        rows["mean"],
        yerr=spread if spread.any() else None,
        color=colour,
        marker=marker,
        linestyle=linestyle,
        capsize=3,
        label=label,
        zorder=3,
    )
    for at, values in zip(x, rows["values"], strict=True):
        seeds = [float(v) for v in values.split()]
        ax.plot([at] * len(seeds), seeds, ".", color="black", alpha=0.7, ms=4, zorder=5)


def band(
    ax: Axes, row: pd.Series, look: str | tuple[str, str, str], label: str, dash: str = "-"
) -> None:
    """A horizontal line at a mean with its interval as a band across the axes."""
    colour = LOOK[look][0] if isinstance(look, str) else look[0]
    ax.axhline(row["mean"], color=colour, lw=1.4, ls=dash, label=label, zorder=2)
    if not math.isnan(row["low"]):
        ax.axhspan(row["low"], row["high"], color=colour, alpha=0.12, lw=0, zorder=1)


def not_below_zero(axes: Iterable[Axes], runs: pd.DataFrame) -> None:
    """Keep wide intervals from opening a range below zero where no value is negative.

    To be called when everything is drawn, since a fixed limit ends automatic scaling.
    """
    if min((float(v) for text in runs["values"] for v in text.split()), default=0) < 0:
        return
    for ax in axes:
        if ax.get_ylim()[0] < 0:
            ax.set_ylim(bottom=0)


def blocks_axis(ax: Axes, blocks: Iterable[int]) -> None:
    """A tick for every number of blocks, with room at both ends."""
    ax.set_xticks(sorted(set(blocks)))
    ax.margins(x=0.12)


def log_axis(axis, values: Iterable[float]) -> None:
    """Plain numbers (0.5, 1, 2, …) on a logarithmic axis, close enough to read values off."""
    values = [v for v in values if v > 0 and math.isfinite(v)]
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    ratio = max(values) / min(values)
    steps = (1,) if ratio > 200 else (1, 2, 5)
    steps = (1, 1.2, 1.5, 2, 3, 4, 5, 6, 7, 8) if ratio < 5 else steps
    steps = (1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 3, 4, 5, 6, 7, 8, 9) if ratio < 2 else steps
    axis.set_major_locator(FixedLocator([m * 10.0**d for d in decades for m in steps]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def facets(
    data: pd.DataFrame,
    row: tuple[str, Sequence[str]],
    column: tuple[str, Sequence[str]],
    cell: tuple[float, float],
    draw: Callable[[Axes, pd.DataFrame], None],
    label: Callable[[str], str],
    title: Callable[[pd.Series], str],
) -> Figure:
    """A grid of panels that share x, and y along a row.

    Args:
        data: the rows to show.
        row: the column of ``data`` that names a panel's row, and its values from the top.
        column: likewise for a panel's column, from the left.
        cell: width and height of a panel, in inches.
        draw: draws the rows of one panel.
        label: the y label of a row, from its value.
        title: the title of a panel, from one of its rows.
    """
    (row_key, row_values), (column_key, column_values) = row, column
    size = (0.8 + cell[0] * len(column_values), 0.3 + cell[1] * len(row_values))
    figure = Figure(figsize=(max(size[0], 6.4), size[1]))
    grid = figure.subplots(
        len(row_values), len(column_values), sharex=True, sharey="row", squeeze=False
    )
    for i, down in enumerate(row_values):
        for j, across in enumerate(column_values):
            here = data[(data[row_key] == down) & (data[column_key] == across)]
            if here.empty:
                grid[i, j].remove()
                continue
            draw(grid[i, j], here)
            grid[i, j].set_title(title(here.iloc[0]), fontsize=9)
        grid[i, 0].set_ylabel(label(down))
    return figure


def x_label(figure: Figure, text: str) -> None:
    """Name the x axis of the lowest panels only."""
    for ax in figure.axes:
        if ax.get_subplotspec().is_last_row():
            ax.set_xlabel(text)


def present(frame: pd.DataFrame, column: str, order: Sequence[str] = ()) -> list[str]:
    """The values of a column, those in ``order`` first and in that order."""
    found = list(dict.fromkeys(frame[column]))
    return [v for v in order if v in found] + [v for v in found if v not in order]
