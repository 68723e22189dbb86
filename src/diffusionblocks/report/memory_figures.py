"""Figures of the memory notebook, in the house style: tables in, a matplotlib Figure out."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..memory.live import LABELS
from ..memory.table import UNITS
from .memory_words import alone, models
from .style import FLOOR_COLOUR, blocks_axis, empty, finish, log_axis, styled, x_label

#: Colour and hatch of every label (Okabe and Ito), from the bottom of a bar.
LABEL_LOOK = {
    "parameters": ("#0072B2", ""),
    "gradients": ("#D55E00", ""),
    "optimizer_state": ("#56B4E9", "//"),
    "ema": ("#009E73", ".."),
    "activations": ("#E69F00", ""),
    "other": ("#999999", "xx"),
}
LABEL_NAMES = {"optimizer_state": "optimiser state", "ema": "moving average (EMA)"}
#: One look a number of blocks, or of any few things in a row.
ROW_LOOKS = [
    ("#0072B2", "o", "-"),
    ("#D55E00", "^", "--"),
    ("#009E73", "P", "-."),
    ("#CC79A7", "D", ":"),
    ("#000000", "s", "-"),
    ("#E69F00", "v", "--"),
]


def _unit(values: pd.Series) -> tuple[str, int]:
    """The binary unit that suits the largest value."""
    for unit in ("GiB", "MiB", "KiB"):
        if values.max() >= UNITS[unit]:
            return unit, UNITS[unit]
    return "B", 1


def _plain(checkpointing: bool) -> str:
    return "checkpointing" if checkpointing else "no checkpointing"


# ---------------------------------------------------------------- what the bytes are for


def breakdown_data(table: pd.DataFrame) -> pd.DataFrame:
    """Bytes by label of a block alone in fp32, at every model's smallest and largest batch.

    Checkpointing is shown at the largest batch only.
    """
    rows = alone(table)
    rows = rows[rows["precision"] == "fp32"]
    by_model = rows.groupby("model")["batch_size"]
    plain = ~rows["checkpointing"].astype(bool)
    largest = rows["batch_size"] == by_model.transform("max")
    smallest = rows["batch_size"] == by_model.transform("min")
    columns = ["model", "batch_size", "checkpointing", "blocks", "planned_bytes"]
    columns += ["measured_bytes", "formula_bytes", *(f"{label}_bytes" for label in LABELS)]
    return rows.loc[largest | (smallest & plain), columns].sort_values("blocks", ignore_index=True)


@styled
def breakdown(data: pd.DataFrame) -> Figure:
    """Stacked bars by label against B: a row a model, a column a setting."""
    title = "What the memory of a training step is for, each block alone"
    names = models(data)
    figure = Figure(figsize=(9.6, 0.4 + 2.5 * len(names)))
    grid = figure.subplots(len(names), 3, squeeze=False)
    for axes, model in zip(grid, names, strict=True):
        mine = data[data["model"] == model]
        small, large = mine["batch_size"].min(), mine["batch_size"].max()
        panels = ((small, False), (large, False), (large, True))
        for ax, (batch_size, checkpointing) in zip(axes, panels, strict=True):
            chosen = mine["checkpointing"].astype(bool) == checkpointing
            here = mine[chosen & (mine["batch_size"] == batch_size)]
            _stack(ax, here)
            ax.set_title(f"{model}, batch {batch_size}, {_plain(checkpointing)}", fontsize=9)
    x_label(figure, "number of blocks B")
    note = "fp32. Bars: planned. Formula: C + (4P + A)·L/B, its constants from one and two layers."
    finish(figure, title, note)
    return figure


def _stack(ax: Axes, here: pd.DataFrame) -> None:
    """One panel of stacked bars, with the formula and what was measured."""
    unit, size = _unit(here["planned_bytes"])
    x = np.arange(len(here))
    foot = np.zeros(len(here))
    for label in LABELS:
        height = here[f"{label}_bytes"].to_numpy(float) / size
        colour, hatch = LABEL_LOOK[label]
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "lw": 0.4}
        ax.bar(x, height, 0.7, bottom=foot, label=LABEL_NAMES.get(label, label), **look)
        foot += height
    ax.plot(x, here["formula_bytes"] / size, "_", color="black", ms=20, mew=2, label="formula")
    if here["measured_bytes"].notna().any():
        ax.plot(x, here["measured_bytes"] / size, "ko", ms=5, label="measured")
    ax.set_xticks(x, here["blocks"])
    ax.set_ylabel(f"peak ({unit})")


# ---------------------------------------------------------------- ratio to B = 1


def ratio_data(table: pd.DataFrame) -> pd.DataFrame:
    """Peak of a block alone over B = 1 in fp32, planned, measured and by the formula."""
    rows = alone(table)
    columns = ["model", "checkpointing", "batch_size", "blocks", "planned_bytes", "ideal_ratio"]
    columns += ["ratio", "formula_ratio", "measured_ratio"]
    shown = rows.loc[rows["precision"] == "fp32", columns]
    return shown.sort_values(["batch_size", "blocks"], kind="stable", ignore_index=True)


@styled
def ratio(data: pd.DataFrame) -> Figure:
    """Ratio to B = 1 against B: a line a batch size, 1/B dotted, the formula hollow."""
    title = "Memory of a block alone relative to the whole network"
    names = models(data)
    figure = Figure(figsize=(8.6, 0.4 + 2.5 * len(names)))
    grid = figure.subplots(len(names), 2, squeeze=False, sharey=True)
    batches = sorted(set(data["batch_size"]))
    for axes, model in zip(grid, names, strict=True):
        for ax, checkpointing in zip(axes, (False, True), strict=True):
            here = data[(data["model"] == model) & (data["checkpointing"] == checkpointing)]
            blocks = sorted(set(here["blocks"]))
            B = np.linspace(min(blocks), max(blocks), 60)
            ax.plot(B, 1 / B, color=FLOOR_COLOUR, ls=(0, (1, 1.5)), lw=2, label="1/B")
            for batch, rows in here.groupby("batch_size"):
                colour, marker, dash = ROW_LOOKS[batches.index(batch) % len(ROW_LOOKS)]
                look = {"color": colour, "marker": marker}
                ax.plot(rows["blocks"], rows["ratio"], ls=dash, label=f"batch {batch}", **look)
                ax.plot(
                    rows["blocks"],
                    rows["formula_ratio"],
                    **look,
                    ls="",
                    ms=11,
                    mfc="none",
                    label="formula (hollow)" if batch == batches[0] else "_",
                )
            ax.set_title(f"{model}, {_plain(checkpointing)}")
            blocks_axis(ax, blocks)
            ax.set_ylim(0, 1.05)
        axes[0].set_ylabel("peak ÷ peak at B = 1")
    x_label(figure, "number of blocks B")
    finish(figure, title, "fp32, planned; the measured ratios stand in the table.")
    return figure


# ---------------------------------------------------------------- crossing with checkpointing


def batch_data(table: pd.DataFrame, crossing: pd.DataFrame) -> pd.DataFrame:
    """Planned peak against batch of the two rivals in fp32, and where they cross.

    Returns:
        columns model, line (``B = …`` or ``end to end, checkpointing``), blocks, batch_size,
        planned_bytes, crossing (whether the row is a crossing, not a planned point).
    """
    rows = alone(table)
    rows = rows[rows["precision"] == "fp32"]
    whole = rows[(rows["blocks"] == 1) & rows["checkpointing"].astype(bool)]
    parts = rows[(rows["blocks"] > 1) & ~rows["checkpointing"].astype(bool)]
    marks = crossing[crossing["precision"] == "fp32"].dropna(subset=["crossing_bytes"])
    marks = marks.rename(
        columns={"crossing_batch": "batch_size", "crossing_bytes": "planned_bytes"}
    )
    frames = [
        whole.assign(line="end to end with checkpointing", crossing=False),
        parts.assign(line=parts["blocks"].map("B = {}".format), crossing=False),
        marks.assign(line=marks["blocks"].map("B = {}".format), crossing=True),
        # Where they cross the rival needs as much.
        marks.assign(line="end to end with checkpointing", blocks=1, crossing=True),
    ]
    columns = ["model", "line", "blocks", "batch_size", "planned_bytes", "crossing"]
    found = pd.concat([frame[columns] for frame in frames], ignore_index=True)
    found = found[found["model"].isin(crossing["model"])]
    return found.sort_values(["model", "blocks", "batch_size"], ignore_index=True)


@styled
def batch(data: pd.DataFrame) -> Figure:
    """Peak against batch size, logarithmic: blocks without, the whole with checkpointing."""
    title = "Blocks without checkpointing against the whole network with it"
    if data.empty:
        return empty(title, "This preset planned no crossing.")
    models = list(dict.fromkeys(data["model"]))
    figure = Figure(figsize=(8.6, 3.4))
    for ax, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        mine = data[data["model"] == model]
        unit, size = _unit(mine["planned_bytes"])
        lines = list(dict.fromkeys(data["line"]))
        for line, rows in mine.groupby("line", sort=False):
            place = lines.index(line)
            # The whole network's line comes first, in black.
            colour, marker, dash = ROW_LOOKS[(4 if place == 0 else place - 1) % len(ROW_LOOKS)]
            rows = rows.sort_values("batch_size")
            ax.plot(
                rows["batch_size"], rows["planned_bytes"] / size, color=colour, ls=dash, label=line
            )
            planned, crossed = rows[~rows["crossing"]], rows[rows["crossing"]]
            ax.plot(
                planned["batch_size"], planned["planned_bytes"] / size, marker, color=colour, ms=5
            )
            if place > 0:
                last = "crossing" if place == len(lines) - 1 else "_"
                at = crossed["batch_size"], crossed["planned_bytes"] / size
                ax.plot(*at, "*", color=colour, ms=14, mec="black", label=last)
        ax.set_xscale("log")
        ax.set_yscale("log")
        log_axis(ax.xaxis, mine["batch_size"])
        log_axis(ax.yaxis, mine["planned_bytes"] / size)
        ax.set_title(model)
        ax.set_xlabel("batch size")
        ax.set_ylabel(f"peak ({unit})")
    note = "fp32, planned. Left of its star a block needs less than the checkpointed network."
    finish(figure, title, note)
    return figure


# ---------------------------------------------------------------- resident against alone


def held_data(table: pd.DataFrame) -> pd.DataFrame:
    """Ratio to B = 1 without checkpointing by what else is on the device, in fp32."""
    rows = table[~table["checkpointing"].astype(bool) & (table["precision"] == "fp32")]
    shared = rows[(rows["resident"] == "all") | (rows["method"] == "blockwise_interleaved")]
    keys = set(zip(shared["model"], shared["batch_size"], strict=True))
    rows = rows[rows["blocks"] > 1]
    rows = rows[[key in keys for key in zip(rows["model"], rows["batch_size"], strict=True)]]
    names = {
        ("blockwise_independent", "own", "resident"): "a block alone",
        ("blockwise_independent", "all", "resident"): "all blocks on the device",
        ("blockwise_interleaved", "own", "resident"): "interleaved",
        ("blockwise_interleaved", "own", "offloaded"): "interleaved, idle moments on the host",
    }
    held = [
        names[key]
        for key in zip(rows["method"], rows["resident"], rows["optimizer_state"], strict=True)
    ]
    columns = ["model", "batch_size", "held", "blocks", "ideal_ratio", "ratio", "measured_ratio"]
    rows = rows.assign(held=held)[columns].drop_duplicates(columns[:4])
    order = {name: i for i, name in enumerate(names.values())}
    return rows.sort_values(
        ["model", "batch_size", "held", "blocks"],
        key=lambda c: c.map(order) if c.name == "held" else c,
        ignore_index=True,
    )


@styled
def held(data: pd.DataFrame) -> Figure:
    """Ratio to B = 1 against B for every way to hold the other blocks: a panel a setting."""
    title = "What it costs to keep the other blocks on the device"
    if data.empty:
        return empty(title, "This preset planned no blocks that stay on the device.")
    panels = list(dict.fromkeys(zip(data["model"], data["batch_size"], strict=True)))
    names = list(dict.fromkeys(data["held"]))
    figure = Figure(figsize=(0.8 + 2.7 * max(2, len(panels)), 2.9))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (model, batch_size) in zip(axes, panels, strict=True):
        here = data[(data["model"] == model) & (data["batch_size"] == batch_size)]
        blocks = sorted(set(here["blocks"]))
        ax.plot(
            blocks,
            [1 / b for b in blocks],
            color=FLOOR_COLOUR,
            ls=(0, (1, 1.5)),
            lw=2,
            label="1/B",
        )
        for name, rows in here.groupby("held", sort=False):
            colour, marker, dash = ROW_LOOKS[names.index(name)]
            ax.plot(rows["blocks"], rows["ratio"], color=colour, marker=marker, ls=dash, label=name)
        ax.set_title(f"{model}, batch {batch_size}")
        blocks_axis(ax, blocks)
        ax.set_xlabel("number of blocks B")
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("peak ÷ peak at B = 1")
    finish(figure, title, "fp32, planned, no checkpointing.")
    return figure


# ---------------------------------------------------------------- time against memory


def tradeoff_data(table: pd.DataFrame) -> pd.DataFrame:
    """Measured memory of a job and time to update all layers once, at the largest batch.

    A step of a block updates 1/B of the layers, so B steps are compared with one of B = 1.
    """
    rows = alone(table).dropna(subset=["seconds_per_step"])
    rows = rows[rows["precision"] == "fp32"]
    largest = rows.groupby("model")["batch_size"].transform("max")
    rows = rows[rows["batch_size"] == largest]
    columns = ["model", "batch_size", "checkpointing", "blocks", "measured_bytes"]
    return rows.assign(seconds=rows["seconds_per_step"] * rows["blocks"])[
        [*columns, "seconds"]
    ].sort_values(["model", "checkpointing", "blocks"], ignore_index=True)


@styled
def tradeoff(data: pd.DataFrame) -> Figure:
    """Time of one update of all layers against a job's memory, B beside every point."""
    title = "Time against memory: blocks and checkpointing"
    if data.empty:
        return empty(title, "Nothing was measured.")
    models = list(dict.fromkeys(data["model"]))
    figure = Figure(figsize=(max(6.4, 0.8 + 4.2 * len(models)), 3.4))
    for ax, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        mine = data[data["model"] == model]
        unit, size = _unit(mine["measured_bytes"])
        for checkpointing, rows in mine.groupby("checkpointing"):
            colour, marker, dash = ROW_LOOKS[int(checkpointing)]
            ax.plot(
                rows["measured_bytes"] / size,
                rows["seconds"],
                color=colour,
                marker=marker,
                ls=dash,
                label="with checkpointing" if checkpointing else "without checkpointing",
            )
            for row in rows.itertuples():
                ax.annotate(
                    str(row.blocks),
                    (row.measured_bytes / size, row.seconds),
                    (0, 7 if checkpointing else -13),
                    textcoords="offset points",
                    fontsize=8,
                    ha="center",
                )
        ax.set_xscale("log")
        log_axis(ax.xaxis, mine["measured_bytes"] / size)
        ax.set_ylim(bottom=0, top=1.15 * mine["seconds"].max())
        ax.margins(x=0.15)
        ax.set_title(f"{model}, batch {mine['batch_size'].iloc[0]}, fp32, measured")
        ax.set_xlabel(f"peak of one job ({unit})")
        ax.set_ylabel("seconds to update\nall layers once")
    finish(
        figure,
        title,
        "Numbers: B. Fastest of a few steps; other jobs of the sweep ran beside them.",
    )
    return figure


# ---------------------------------------------------------------- sampling


def sampling_data(inference: pd.DataFrame) -> pd.DataFrame:
    """Weights, the rest and time of sampling by B and by where the weights are."""
    columns = ["model", "blocks", "weights", "parameters_bytes", "rest_bytes", "host_bytes"]
    return inference[[*columns, "measured_bytes", "seconds", "sampled", "steps"]]


def _grouped(ax: Axes, data: pd.DataFrame, draw) -> None:
    """Call draw(ax, x, rows, place, width) for every place of the weights, side by side."""
    kinds = list(dict.fromkeys(data["weights"]))
    blocks = sorted(set(data["blocks"]))
    width = 0.8 / len(kinds)
    for place, kind in enumerate(kinds):
        rows = data[data["weights"] == kind]
        x = [blocks.index(b) + (place - (len(kinds) - 1) / 2) * width for b in rows["blocks"]]
        draw(ax, x, rows, place, width)
    ax.set_xticks(range(len(blocks)), blocks)
    ax.set_xlabel("number of blocks B")


@styled
def sampling(data: pd.DataFrame) -> Figure:
    """Memory of sampling on the left, its time on the right, side by side by the weights' place."""
    figure = Figure(figsize=(8.6, 3.0))
    left, right = figure.subplots(1, 2)
    unit, size = _unit(data["measured_bytes"])

    def memory(ax, x, rows, place, width):
        colour = ROW_LOOKS[place][0]
        weights = rows["parameters_bytes"] / size
        ax.bar(x, weights, width, color=colour, label=rows["weights"].iloc[0])
        ax.bar(
            x,
            rows["rest_bytes"] / size,
            width,
            bottom=weights,
            color="#d9d9d9",
            edgecolor=colour,
            lw=0.8,
            label="activations and the rest" if place == 0 else "_",
        )

    def seconds(ax, x, rows, place, width):
        ax.bar(x, rows["seconds"], width, color=ROW_LOOKS[place][0])

    _grouped(left, data, memory)
    _grouped(right, data, seconds)
    left.set_ylabel(f"peak ({unit})")
    right.set_ylabel("seconds")
    first = data.iloc[0]
    note = (
        f"{first['model']}: {first['sampled']} images by {first['steps']} steps, opening the files "
        "included, which the system keeps in its cache. Coloured: weights on the device."
    )
    finish(figure, "Sampling with all blocks on the device, and with one", note)
    return figure


# ---------------------------------------------------------------- a language model


@styled
def text(data: pd.DataFrame) -> Figure:
    """Peak of a denoising block against B, and of the plain network as a line across."""
    title = "Language: a denoising block against the plain network end to end"
    unit, size = _unit(data["planned_bytes"])
    rows = data[data["precision"] == data["precision"].iloc[0]]
    batches = sorted(set(rows["batch_size"]))
    figure = Figure(figsize=(8.6, 3.0))
    for ax, kept in zip(figure.subplots(1, 2), (False, True), strict=True):
        for batch, here in rows[rows["checkpointing"] == kept].groupby("batch_size"):
            colour, marker, dash = ROW_LOOKS[batches.index(batch) % len(ROW_LOOKS)]
            blocks = here[here["blocks"] > 1].sort_values("blocks")
            look = {"color": colour, "marker": marker, "ls": dash}
            ax.plot(
                blocks["blocks"],
                blocks["planned_bytes"] / size,
                label=f"a block, batch {batch}",
                **look,
            )
            whole = here.loc[here["blocks"] == 1, "planned_bytes"].iloc[0] / size
            ax.axhline(whole, color=colour, ls=(0, (1, 1.5)), label=f"end to end, batch {batch}")
        ax.set_title(_plain(kept))
        blocks_axis(ax, sorted(set(rows.loc[rows["blocks"] > 1, "blocks"])))
        ax.set_ylim(0)
        ax.set_ylabel(f"peak ({unit})")
    x_label(figure, "number of blocks B")
    first = rows.iloc[0]
    note = (
        f"{first['layers']} layers of width {first['width']}, {first['context_length']} tokens of "
        f"{first['vocabulary']}, {first['precision']}, planned."
    )
    finish(figure, title, note)
    return figure
