"""Wall time against the number of GPUs: block-wise runs against end to end."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .style import LOOK, finish, log_axis, styled

#: Line widths grow with the number of blocks, so that methods keep their colours.
THIN, THICK = 1.0, 2.8


@styled
def wall_time(found: pd.DataFrame, device: str, source: str) -> Figure:
    """Hours on 1 to N GPUs of the training of one run of every method, and of the whole sweep.

    Args:
        found: rows of ``diffusionblocks.cluster.scale.rows``.
        device, source: what the step times were measured on, and of what.
    """
    figure = Figure(figsize=(7, 3.6))
    ax = figure.subplots()
    most = max(found["blocks"].max(), 2)
    gpus = sorted(found["gpus"].unique())
    for name, lines in found.groupby("work", sort=False):
        method, blocks = lines.iloc[0][["method", "blocks"]]
        colour, marker, dash = LOOK.get(method, ("#767676", "x", "-."))
        width = THIN + (THICK - THIN) * (blocks - 1) / (most - 1) if blocks else THIN
        ax.plot(
            lines["gpus"], lines["hours"], dash, color=colour, marker=marker, lw=width, label=name
        )
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(gpus))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.set_yscale("log")
    log_axis(ax.yaxis, found["hours"])
    ax.set_xlabel("GPUs")
    ax.set_ylabel("hours")
    finish(
        figure,
        "A run of B blocks spreads over B GPUs, without communication",
        f"On paper, from measured step times ({source}, {device}): a GPU here is as fast as that. "
        "A run end to end is one job, which more GPUs do not shorten without communication at "
        "every step; the whole sweep has many such jobs.",
    )
    return figure
