"""What the language tables say, in sentences, every number out of the tables."""

import html
import math

import pandas as pd

from . import language_statistics as ls
from .statistics import CONFIDENCE, METHOD_NAMES, t_interval

NOT_RUN = "Not tested: this preset has no runs that answer it."


def main_sampling(scores: pd.DataFrame) -> str:
    """The way of sampling that comes first in the table; "" where nothing was sampled."""
    named = scores.loc[scores["sampling"] != "", "sampling"]
    return named.iloc[0] if len(named) else ""


def sampling_names(scores: pd.DataFrame) -> dict[str, str]:
    """Every way of sampling in words, in the table's order."""
    first = scores[scores["sampling"] != ""].drop_duplicates("sampling")
    names = {}
    for row in first.itertuples():
        top_p = f", top-p {row.top_p:g}" if row.top_p < 1 else ""
        names[row.sampling] = f"{row.sampling}: temperature {row.temperature:g}{top_p}"
    return names


def _count(text: str | None) -> str:
    """A number with separators; what is no number stays as it is."""
    try:
        return f"{int(float(text)):,}"
    except (TypeError, ValueError):
        return text or "an unrecorded number of"


def setting(setting: dict[str, str], scores: pd.DataFrame, floors: pd.DataFrame) -> list[str]:
    """What was run, at what scale and cost."""
    get = {key: value or "not recorded" for key, value in setting.items()}

    def of(key: str) -> str:
        return get.get(key, "not recorded")

    splits = ", ".join(
        f"{_count(setting.get(f'{split}_tokens'))} {name}"
        for split, name in (
            ("train", "to train on"),
            ("validation", "for validation"),
            ("test", "for the test"),
            ("judge", "for the judge"),
        )
        if f"{split}_tokens" in setting
    )
    seeds = scores.groupby(ls.CONFIGURATION, dropna=False)["seed"].nunique()
    many = sorted({int(n) for n in seeds})
    sampled = scores[scores["sampling"] != ""]
    samples = sorted({int(n) for n in sampled["samples"].dropna()})
    real = floors.loc[(floors["kind"] == "real") & (floors["metric"] == "mauve"), "samples"]
    shown = f"{of('prompt_length')} tokens of prompt, {of('new_tokens')} new ones"
    sentences = [
        f"Preset {of('preset')}: {of('description')}",
        f"Text: {of('dataset')}; tokeniser {of('tokenizer')}, {_count(setting.get('vocabulary'))} "
        f"tokens; {splits}. {setting.get('dataset_note', '')}".strip(),
        f"Network: {of('layers')} layers, width {of('width')}, context {of('context_length')} "
        f"tokens; batch {of('batch_size')}, {of('iterations')} iterations a block; learning rate "
        f"{of('learning_rates')}.",
        f"Samples: {' and '.join(f'{n:,}' for n in samples)} a run and way of sampling "
        f"({shown}): {'; '.join(sampling_names(scores).values())}.",
        f"Features for MAUVE: {of('featurizer')}. Judge of perplexity: {of('judge')}.",
        f"Seeds a configuration: {' to '.join(str(n) for n in sorted({many[0], many[-1]}))}."
        + (" With one seed nothing is tested." if many[-1] < 2 else ""),
        f"Machine: {of('device')}, torch {of('torch')}, commit {of('commit')[:12]}.",
    ]
    if len(real) and samples and int(real.iloc[0]) not in samples:
        sentences.append(
            f"Real text is scored on {int(real.iloc[0]):,} samples: its MAUVE and diversity depend "
            "on that count and compare only roughly."
        )
    return sentences


def costs(scores: pd.DataFrame) -> list[str]:
    """What every kind of run spent: layer evaluations and tokens seen."""
    rows = scores.assign(budget=ls.budgets(scores)).drop_duplicates("run")
    sentences = []
    for (budget, method), group in rows.groupby(["budget", "method"], sort=False):
        name = METHOD_NAMES[method].capitalize() + (f", {budget}" if budget else "")
        spent, seen = (_range(group[column]) for column in ("layer_evaluations", "tokens_seen"))
        sentences.append(f"{name}: {spent} layer evaluations, {seen} tokens seen by each layer.")
    return sentences


def _range(counts: pd.Series) -> str:
    return " to ".join(f"{int(n):,}" for n in sorted({counts.min(), counts.max()}))


def _rows(table: pd.DataFrame, question: str, metric: str, sampling: str) -> pd.DataFrame:
    return table[
        (table["question"] == question)
        & (table["metric"] == metric)
        & (table["sampling"] == sampling)
    ]


def _sampling_of(metric: str, table: pd.DataFrame, main: str) -> str:
    """Where a metric of samples stands: under the main way of sampling, or under none."""
    return main if main in set(table.loc[table["metric"] == metric, "sampling"]) else ""


def _holds(row: dict) -> str:
    if row["reading"] not in ("better", "worse", "higher", "lower"):
        return ""
    kept = "holds" if row["p_holm"] < 1 - CONFIDENCE else "does not hold"
    p = f"p = {row['p_holm']:.2g}" if row["p_holm"] >= 1e-4 else "p < 0.0001"
    return f"; the difference {kept} after Holm's correction ({p})"


def match_table(
    table: pd.DataFrame, main: str, question: str = "layer_evaluations"
) -> pd.DataFrame:
    """Whether blocks match end to end: a row a configuration, a column a metric, with intervals.

    Args:
        table: of :func:`language_statistics.comparisons`.
        main: the way of sampling that MAUVE is read at.
        question: at what the two are equal, layer_evaluations or tokens_seen.
    """
    cells: dict[str, dict[str, str]] = {}
    for metric in ls.MAIN_METRICS:
        rows = _rows(table, question, metric, _sampling_of(metric, table, main))
        for row in rows.to_dict("records"):
            lost = row["p_holm"] >= 1 - CONFIDENCE and row["reading"] in ("better", "worse")
            word = row["match"] + (" (the difference not after Holm's correction)" if lost else "")
            cell = cells.setdefault(row["case"], {})
            cell[ls.METRIC_NAMES[metric]] = f"{word}: {ls.change(row)}"
    frame = pd.DataFrame.from_dict(cells, orient="index").fillna("not tested")
    return frame.rename_axis("blocks − end to end, or their ratio").reset_index()


def headline(table: pd.DataFrame, main: str, question: str = "layer_evaluations") -> list[str]:
    """One line a metric: how many of the block-wise configurations match, and how far off."""
    lines = []
    for metric in ls.MAIN_METRICS:
        rows = _rows(table, question, metric, _sampling_of(metric, table, main))
        name = ls.METRIC_NAMES[metric]
        name = name[0].upper() + name[1:]
        tested = rows[rows["n_seeds"] >= 2]
        if tested.empty:
            reason = "fewer than two seeds at equal cost" if len(rows) else "no such runs or values"
            lines.append(f"**{name}**: not tested ({reason}).")
            continue
        kept = tested["match"].isin(["better", "matches"])
        worse, open_ = (tested["match"] == "worse").sum(), (tested["match"] == "undecided").sum()
        sign = 1 if tested["better"].iloc[0] == "lower" else -1
        best = tested.loc[(sign * tested["effect"]).idxmin()].to_dict()
        lines.append(
            f"**{name}**: {kept.sum()} of {len(tested)} block-wise configurations match end to end "
            f"or beat it, {worse} are worse, {open_} undecided; the best is {best['case']}, "
            f"{ls.change(best)}."
        )
    return lines


def answers(table: pd.DataFrame, question: str, main: str) -> list[str]:
    """How one question comes out in cross-entropy and in the three main metrics."""
    sentences = []
    for metric in ("next_token_cross_entropy", *ls.MAIN_METRICS):
        rows = _rows(table, question, metric, _sampling_of(metric, table, main))
        sentences += [
            f"{row['comparison']}: {ls.METRIC_NAMES[metric]} {ls.change(row)}: "
            f"{row['reading']}{_holds(row)}."
            for row in rows.to_dict("records")
        ]
    return sentences or [NOT_RUN]


def calibration(curve: pd.DataFrame, scores: pd.DataFrame) -> list[str]:
    """Where the bound is least, and what the lowest cut would cost instead, on test text."""
    sentences = []
    test = curve[curve["split"] == "test"]
    chosen = scores[scores["metric"] == "bound_sigma_0"].set_index("run")["value"]
    for _, rows in test.groupby(ls.CONFIGURATION, dropna=False, sort=False):
        low, high = rows["sigma_0"].min(), rows["sigma_0"].max()
        at_low = t_interval(rows.loc[rows["sigma_0"] == low, "excess"])
        cuts = sorted({chosen[run] for run in set(rows["run"]) if run in chosen})
        where = " and ".join(f"{s:.3g}" for s in cuts)
        spread = ""
        if not math.isnan(at_low.low):
            spread = f" (95 % interval {at_low.low:.3g} to {at_low.high:.3g})"
        name = ls.describe(rows.iloc[0].to_dict())
        sentences.append(
            f"{name}: the cut chosen on validation text is σ₀ = {where} (σ_max = {high:g}); at "
            f"σ₀ = {low:g} the bound is {at_low.mean:.3g} nats a token above its value at σ_max"
            f"{spread}. An exact denoiser would give 0."
        )
    return sentences or [NOT_RUN]


def diversity(scores: pd.DataFrame, floors: pd.DataFrame) -> list[str]:
    """At which diversity judged perplexity is compared, and how near to real text's that is."""
    rows = scores[scores["metric"] == "generative_perplexity_matched"]
    notes = sorted({note for note in rows["note"] if note})
    real = floors[(floors["kind"] == "real") & (floors["metric"] == "distinct_2")]
    sentences = []
    if rows["value"].notna().any():
        sentences.append(
            f"Judged perplexity at equal diversity is read at {', '.join(notes)}, a diversity that "
            "every run reaches, along the line through each run's temperatures."
        )
    elif len(rows):
        sentences.append(
            "There is no diversity that every run reaches: nothing is compared at equal diversity."
        )
    if len(real):
        sentences.append(f"Real text has distinct-2 = {real['value'].iloc[0]:.3g}.")
    return sentences


def speed(generation: pd.DataFrame, main: str) -> list[str]:
    """Tokens a second and layer passes a token of every configuration, beside end to end."""
    rows = ls.speeds(generation, main)
    keys = [c for c in ls.CONFIGURATION if c != "iterations_scale"]
    whole = rows[rows["method"] == "end_to_end"]["tokens_per_second"].mean()
    sentences = []
    for _, group in rows.groupby(keys, dropna=False, sort=False):
        found = t_interval(group["tokens_per_second"])
        first = group.iloc[0].to_dict()
        name = ls.describe(first | {"iterations_scale": 1})
        spread = ""
        if not math.isnan(found.low):
            spread = f" (95 % interval {max(0, found.low):,.0f} to {found.high:,.0f})"
        beside = ""
        if first["method"] != "end_to_end" and whole > 0:
            beside = f", × {found.mean / whole:.2f} of end to end"
        sentences.append(
            f"{name}: {found.mean:,.0f} tokens a second{spread}, "
            f"{first['layer_passes_per_token']:g} layer passes a token{beside}."
        )
    return sentences or [NOT_RUN]


def samples_table(samples: pd.DataFrame, prompts: int = 3) -> str:
    """Continuations side by side as HTML: a row a prompt, a column a configuration's first seed.

    Args:
        samples: rows of ``samples.csv``.
        prompts: how many prompts to show.
    """
    if samples.empty:
        return f"<p>{NOT_RUN}</p>"
    columns: dict[str, pd.DataFrame] = {}
    real = samples[samples["kind"] == "real"]
    model = samples[samples["kind"] == "model"]
    if len(real):
        columns["real text"] = real
    for _, rows in model.groupby(ls.CONFIGURATION, dropna=False, sort=False):
        first = rows[rows["seed"] == rows["seed"].min()]
        columns[_column_name(first.iloc[0].to_dict())] = first
    ngram = samples[samples["kind"] == "ngram"]
    if len(ngram):
        columns["n-gram model"] = ngram
    numbers = sorted({int(n) for n in samples["number"]})[:prompts]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["prompt", *columns])
    body = []
    for number in numbers:
        cells = [samples.loc[samples["number"] == number, "prompt"].iloc[0]]
        for rows in columns.values():
            text = rows.loc[rows["number"] == number, "text"]
            cells.append(text.iloc[0] if len(text) else "")
        body.append("".join(f"<td>{_visible(cell)}</td>" for cell in cells))
    head = head.replace("<th>", '<th style="text-align: left; vertical-align: top">')
    style = "text-align: left; vertical-align: top; min-width: 13em; white-space: pre-wrap"
    rows = "".join(f"<tr>{line}</tr>" for line in body).replace("<td>", f'<td style="{style}">')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _column_name(row: dict) -> str:
    # The rows of real text have no B, which makes the column one of fractions.
    name = ls.describe(row | {"blocks": int(row["blocks"])})
    if row["method"] == "end_to_end" and row["iterations_scale"] != 1:
        name += f", iterations × {row['iterations_scale']:g}"
    return f"{name} (seed {row['seed']:g})"


def _visible(text: object) -> str:
    """A text as it is, with every character shown as itself."""
    return html.escape("" if pd.isna(text) else str(text))
