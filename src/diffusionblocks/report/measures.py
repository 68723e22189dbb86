"""The sources that claims read: every table of a sweep as rows of run × metric."""

from pathlib import Path

import pandas as pd

from ..memory.table import POINT_COLUMNS
from . import RATE, read_table
from .stability import IDENTITY, stability

SAMPLING_METRICS = ["trajectories_per_second", "seconds", "layer_evaluations_per_trajectory"]


def total_seconds(training: pd.DataFrame) -> pd.DataFrame:
    """Training time of every run: the sum over its jobs, whether they ran in parallel or not."""
    # A job that trains several blocks stands in several rows with the same seconds.
    jobs = training.drop_duplicates(["run", "part"])
    total = jobs.groupby(IDENTITY, sort=False)["seconds"].sum().reset_index(name="value")
    # All rows of a run: what it cost in layer evaluations, to compare only equals.
    cost = training.groupby("run")["layer_evaluations"].sum()
    return total.assign(metric="total_seconds", layer_evaluations=total["run"].map(cost))


def memory(folder: Path) -> pd.DataFrame:
    """The memory tables of a sweep, if it has any, as rows of point × metric.

    A point is counted, not drawn: its seed is 0.
    """
    frames = [read_table(folder, path.stem) for path in sorted(Path(folder).glob("*.csv"))]
    frames = [f for f in frames if {"model", "method", "blocks", "planned_bytes"} <= set(f.columns)]
    if not frames:
        return pd.DataFrame()
    whole = pd.concat(frames, ignore_index=True)
    metrics = [c for c in ("planned_bytes", "measured_bytes") if c in whole]
    # Two tables may hold the same point; planned numbers are equal, a measured one is wanted.
    point = [c for c in POINT_COLUMNS if c in whole]
    order = whole.notna().sum(axis=1).sort_values(ascending=False, kind="stable").index
    whole = whole.loc[order].drop_duplicates(point)
    named = [c for c in whole.columns if not c.endswith("_bytes")]
    long = whole.melt(named, metrics, "metric", "value").dropna(subset=["value"])
    return long.assign(
        seed=0, task="memory", run=long["model"] + " B=" + long["blocks"].astype(str)
    )


def language(folder: Path) -> pd.DataFrame:
    """Scores of a language sweep; runs that have no number for a metric are left out."""
    scores = read_table(folder, "scores").dropna(subset=["value"])
    # As published.csv names the task.
    return scores.assign(task="language_modelling")


def images(folder: Path) -> dict[str, pd.DataFrame]:
    """The sources that an image sweep's tables make."""
    scores = read_table(folder, "scores", every_rate=True)
    curves = read_table(folder, "curves", every_rate=True)
    sampling = read_table(folder, "sampling", every_rate=True)
    named = [c for c in sampling.columns if c not in SAMPLING_METRICS]
    training = read_table(folder, "training", every_rate=True)
    return {
        "scores": scores[scores[RATE] == 1],
        "sampling": sampling[sampling[RATE] == 1].melt(named, SAMPLING_METRICS, "metric", "value"),
        "training": total_seconds(training[training[RATE] == 1]),
        "stability": stability(curves, scores),
    }


def sources(
    tables: Path | None, memory_tables: Path | None, language_tables: Path | None = None
) -> dict[str, pd.DataFrame]:
    """Every source of claims, from the folders of tables that there are; others are absent."""
    found = {} if tables is None else images(tables)
    if memory_tables is not None:
        found["memory"] = memory(memory_tables)
    if language_tables is not None:
        found["language"] = language(language_tables)
    return found
