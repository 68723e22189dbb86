"""What the memory tables say, in sentences, every number out of the tables."""

from pathlib import Path

import pandas as pd

from ..errors import UserError
from ..memory.table import size_text
from . import read_table

#: Beyond how many points of a hundred a ratio no longer counts as 1/B.
POINTS = 2.0
#: One job of independent blocks, or the whole network: no other blocks beside it.
ALONE = ("end_to_end", "blockwise_independent")


def read_sweeps(folder: Path) -> pd.DataFrame:
    """Every memory sweep of a preset in one table, with the column ``sweep``.

    Raises:
        UserError: there is none.
    """
    names = sorted(path.stem for path in Path(folder).glob("*.csv"))
    if not names:
        raise UserError(f"{folder} holds no memory tables; expected some: run snakemake memory")
    tables = [read_table(folder, name).assign(sweep=name) for name in names]
    # A column that no row of a table fills says nothing about its kind.
    columns = tables[0].columns
    table = pd.concat([t.dropna(axis=1, how="all") for t in tables], ignore_index=True)
    order = {model: place for place, model in enumerate(models(table))}
    table = table.reindex(columns=columns)
    return table.sort_values("model", key=lambda c: c.map(order), kind="stable", ignore_index=True)


def alone(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of jobs that hold the block they train and nothing else."""
    return table[table["method"].isin(ALONE) & (table["resident"] == "own")].drop_duplicates(
        ["model", "blocks", "batch_size", "precision", "checkpointing"]
    )


def ways(table: pd.DataFrame) -> list[tuple[tuple, pd.DataFrame]]:
    """Rows by model, precision, checkpointing and batch size, as (keys, rows by B)."""
    keys = ["model", "precision", "checkpointing", "batch_size"]
    order = {model: place for place, model in enumerate(models(table))}
    ordered = table.sort_values(
        [*keys, "blocks"], key=lambda c: c.map(order) if c.name == "model" else c
    )
    return list(ordered.groupby(keys, sort=False))


def models(table: pd.DataFrame) -> list[str]:
    """The models of a table, the one that needs least first."""
    return list(table.groupby("model")["planned_bytes"].max().sort_values().index)


def _with(checkpointing: bool) -> str:
    return "with checkpointing" if checkpointing else "without checkpointing"


def agreement(table: pd.DataFrame) -> list[str]:
    """How plan and measurement compare, by precision and checkpointing."""
    measured = table.dropna(subset=["measured_bytes"])
    sentences = []
    keys = ["measured_kind", "precision", "checkpointing"]
    for (kind, precision, checkpointing), rows in measured.groupby(keys, sort=False):
        equal = int((rows["measured_bytes"] == rows["planned_bytes"]).sum())
        worst = 100 * rows["difference"].abs().max()
        sentences.append(
            f"{kind}, {precision} {_with(checkpointing)}: plan and measurement agree to the byte "
            f"in {equal} of {len(rows)} points; the largest difference is {worst:.2g} %."
        )
    return sentences or ["Nothing was measured."]


def proportionality(table: pd.DataFrame) -> list[str]:
    """Where the peak of a block alone is 1/B of the whole network's, and where it is not."""
    rows = alone(table)
    rows = rows[rows["blocks"] > 1].dropna(subset=["ratio"])
    rows = rows.assign(off=100 * (rows["ratio"] - rows["ideal_ratio"]))
    held, failed = [], []
    keys = ["model", "precision", "checkpointing"]
    for (model, precision, checkpointing), group in rows.groupby(keys, sort=False):
        batches = ", ".join(str(b) for b in sorted(set(group["batch_size"])))
        worst = group.loc[group["off"].abs().idxmax()]
        text = (
            f"{model}, {precision}, {_with(checkpointing)} (batch {batches}): at worst "
            f"{worst['ratio']:.3f} where 1/B is {worst['ideal_ratio']:.3f}, at B = "
            f"{worst['blocks']} and batch {worst['batch_size']}"
        )
        within = group["off"].abs().max() <= POINTS
        word = "**B-fold to within" if within else "**Not within"
        (held if within else failed).append(f"{word} {POINTS:g} points**: {text}.")
    return held + failed


def formula(table: pd.DataFrame) -> list[str]:
    """How far C + (4P + A)·L/B is from the plan, and how large C is."""
    rows = alone(table).dropna(subset=["formula_bytes"])
    sentences = []
    for checkpointing, group in rows.groupby("checkpointing", sort=False):
        off = 100 * (group["planned_bytes"] / group["formula_bytes"] - 1)
        worst = group.loc[off.abs().idxmax()]
        sentences.append(
            f"{_with(checkpointing).capitalize()} the plan is {off.min():+.2f} to {off.max():+.2f} "
            f"% of the formula away (the most for {worst['model']} at B = {worst['blocks']}, batch "
            f"{worst['batch_size']}, {worst['precision']}: there gradients are alive at the peak, "
            "or activations are few)."
        )
    return sentences


def fixed_data(table: pd.DataFrame) -> pd.DataFrame:
    """C of every setting, and its share of the peaks at B = 1 and at the largest B."""
    rows = []
    for (model, precision, checkpointing, batch), group in ways(alone(table)):
        first, last = group.iloc[0], group.iloc[-1]
        rows.append(
            {
                "model": model,
                "precision": precision,
                "checkpointing": checkpointing,
                "batch_size": batch,
                "fixed_bytes": first["fixed_bytes"],
                "layer_parameters_bytes": first["layer_parameters_bytes"],
                "layer_activations_bytes": first["layer_activations_bytes"],
                "share_at_B1": first["fixed_bytes"] / first["planned_bytes"],
                "largest_B": last["blocks"],
                "share_at_largest_B": last["fixed_bytes"] / last["planned_bytes"],
            }
        )
    return pd.DataFrame(rows)


def fixed(table: pd.DataFrame) -> list[str]:
    """What the fixed cost is at the largest batch of every model."""
    return [
        f"{r.model}, {r.precision}, {_with(r.checkpointing)}, batch {r.batch_size}: "
        f"C = {size_text(r.fixed_bytes)}, {100 * r.share_at_B1:.1f} % of the peak at B = 1 and "
        f"{100 * r.share_at_largest_B:.0f} % at B = {r.largest_B}."
        for r in fixed_data(table)
        .sort_values("batch_size", kind="stable")
        .groupby("model")
        .tail(2)
        .itertuples()
    ]


def crossings(table: pd.DataFrame) -> list[str]:
    """Up to which batch a block without checkpointing needs less than the whole with it."""
    sentences = []
    for (model, precision), rows in table.groupby(["model", "precision"], sort=False):
        found = [
            f"{r.crossing_batch:.0f} at B = {r.blocks}"
            if pd.notna(r.crossing_batch)
            else f"any at B = {r.blocks}"
            for r in rows.itertuples()
        ]
        sentences.append(
            f"{model}, {precision}: blocks without checkpointing need no more than the whole "
            f"network with checkpointing up to batch {', '.join(found)}; beyond, checkpointing "
            "alone needs less."
        )
    return sentences


def best_of_both(table: pd.DataFrame) -> list[str]:
    """Whether blocks with checkpointing need least at every batch."""
    sentences = []
    for (model, precision), rows in alone(table).groupby(["model", "precision"], sort=False):
        won, settings = 0, 0
        for _, group in rows.groupby("batch_size"):
            if group["checkpointing"].nunique() < 2:
                continue
            settings += 1
            least = group.loc[group["planned_bytes"].idxmin()]
            won += bool(least["checkpointing"] and least["blocks"] == group["blocks"].max())
        if settings:
            sentences.append(
                f"{model}, {precision}: the largest B with checkpointing needs least at {won} of "
                f"{settings} batch sizes."
            )
    return sentences


def residents(table: pd.DataFrame) -> list[str]:
    """What other blocks on the device cost: the saving alone and together, at the largest B."""
    sentences = []
    rows = table[~table["checkpointing"].astype(bool)]
    for (model, batch), group in rows[rows["resident"] == "all"].groupby(
        ["model", "batch_size"], sort=False
    ):
        B = group["blocks"].max()
        together = group.loc[group["blocks"] == B, "ratio"].iloc[0]
        lone = alone(rows)
        lone = lone[
            (lone["model"] == model)
            & (lone["batch_size"] == batch)
            & (lone["blocks"] == B)
            & (lone["precision"] == group["precision"].iloc[0])
        ]
        sentences.append(
            f"{model}, batch {batch}, B = {B}: {lone['ratio'].iloc[0]:.3f} of the whole network's "
            f"memory alone, {together:.3f} with the other blocks' weights, averages and optimiser "
            f"state on the device (1/B is {1 / B:.3f})."
        )
    return sentences


def offloading(table: pd.DataFrame) -> list[str]:
    """What offloading idle blocks' moments saves an interleaved run, at the largest B."""
    rows = table[table["method"] == "blockwise_interleaved"]
    sentences = []
    for (model, batch), group in rows.groupby(["model", "batch_size"], sort=False):
        group = group[group["blocks"] == group["blocks"].max()]
        states = group.drop_duplicates("optimizer_state").set_index("optimizer_state")
        if {"resident", "offloaded"} <= set(states.index):
            before, after = states.loc["resident"], states.loc["offloaded"]
            sentences.append(
                f"{model}, interleaved, batch {batch}, B = {before['blocks']}: "
                f"{before['ratio']:.3f} of the whole network's memory, {after['ratio']:.3f} with "
                f"idle blocks' moments on the host, which then holds "
                f"{size_text(after['host_bytes'])}."
            )
    return sentences


def sampling(table: pd.DataFrame) -> list[str]:
    """What streaming blocks saves while sampling, and what it costs in time."""
    sentences = []
    for B, group in table[table["blocks"] > 1].groupby("blocks", sort=False):
        rows = group.set_index("weights")
        everything, streamed = rows.loc["all resident"], rows.loc["one streamed"]
        ahead = rows.loc["one streamed, next read ahead"]
        sentences.append(
            f"B = {B}: weights {size_text(everything['parameters_bytes'])} → "
            f"{size_text(streamed['parameters_bytes'])}, peak "
            f"{size_text(everything['measured_bytes'])} → {size_text(streamed['measured_bytes'])}; "
            f"time × {streamed['seconds'] / everything['seconds']:.2f}, × "
            f"{ahead['seconds'] / everything['seconds']:.2f} with the next block read ahead."
        )
    return sentences


def text(table: pd.DataFrame) -> list[str]:
    """What blocks of a language model need of the plain network's memory."""
    lines = []
    for (precision, kept, batch), rows in table.groupby(
        ["precision", "checkpointing", "batch_size"]
    ):
        blocks = rows[rows["blocks"] > 1].sort_values("blocks")
        found = ", ".join(f"{r.ratio:.3f} at B = {r.blocks}" for r in blocks.itertuples())
        lines.append(f"{precision}, {_with(bool(kept))}, batch {batch}: {found}.")
    return lines
