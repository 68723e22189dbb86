"""Every figure of the language notebook, in the house style: tables in, a matplotlib Figure out.

Each figure is a pair as in :mod:`.figures`: ``<name>_data`` makes the frame that is drawn and
saved beside the figure, ``<name>`` draws it.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from ..partition import partition
from . import language_statistics as ls
from .figures import noise_law
from .language_words import main_sampling, sampling_names
from .statistics import METHOD_NAMES, STRATEGY_NAMES, even_layers, t_interval
from .style import (
    FLOOR_COLOUR,
    band,
    blocks_axis,
    empty,
    facets,
    finish,
    interval_note,
    log_axis,
    over_seeds,
    points,
    present,
    styled,
    x_label,
)

#: Titles of the figures, by the name that each is saved under.
FIGURES = {
    "likelihood": "Likelihood of held-out text against the number of blocks",
    "bound_curve": "The likelihood bound against its cut",
    "mauve": "MAUVE against the number of blocks",
    "judged_perplexity": "Judged perplexity against the number of blocks",
    "diversity": "Diversity against judged perplexity",
    "throughput": "Speed of generation against the number of blocks",
    "text_published_vs_measured": "Text quality relative to end to end: published and measured",
}
METRIC_LABELS = {
    "likelihood": "nats a token\n(lower is better)",
    "mauve": "MAUVE (0 to 1)\n(higher is better)",
    "generative_perplexity": "judged perplexity a token\n(lower is better)",
}
#: Colour, marker and dash of every way to be block-wise: method, partition, embedding.
LOOKS = {
    ("blockwise_independent", "equal_mass", "frozen"): ("#0072B2", "o", "-"),
    ("blockwise_independent", "uniform_log_sigma", "frozen"): ("#D55E00", "^", "--"),
    ("blockwise_independent", "uniform_sigma", "frozen"): ("#CC79A7", "D", ":"),
    ("blockwise_interleaved", "equal_mass", "frozen"): ("#009E73", "P", "--"),
    ("blockwise_interleaved", "equal_mass", "joint"): ("#E69F00", "X", "-."),
}
#: For ways that have no look of their own, in the order they come.
SPARE_LOOKS = [
    ("#56B4E9", "v", ":"),
    ("#7A4E9F", "<", "-."),
    ("#8C510A", ">", "--"),
    ("#4D4D4D", "p", ":"),
    ("#B2182B", "h", "-"),
]
#: End to end by what it shares with the blocks.
WHOLE_LOOKS = {
    ls.BUDGETS[0]: ("#000000", "s", "-"),
    ls.BUDGETS[1]: ("#6A6A6A", "d", (0, (5, 2))),
    ls.BUDGETS[2]: ("#A6A6A6", "H", (0, (3, 1, 1, 1))),
}
FLOORS = {
    "real": ("real held-out text", (0, (1, 1.5)), "*"),
    "ngram": ("n-gram model", (0, (4, 1, 1, 1)), "X"),
    "shuffled": ("real text, tokens shuffled", (0, (1, 4)), "x"),
    "judge": ("the judge itself", (0, (6, 3)), "1"),
}
#: The column of judged perplexity at equal diversity, beside the ways of sampling.
MATCHED = "at equal diversity"


# ---------------------------------------------------------------- names and looks


def with_families(frame: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Add ``family``: the way of training in words, which figures show as one line over B.

    What all block-wise runs share (their overlap, equal layers) is not repeated in it.

    Args:
        frame: rows with the columns of a configuration.
        scores: the scores, which tell what an end-to-end run shares with the blocks.
    """
    blockwise = scores[scores["method"] != "end_to_end"]
    overlaps = blockwise["overlap"].nunique() > 1
    budget = dict(zip(scores["run"], ls.budgets(scores), strict=True))
    families = []
    for row in frame.to_dict("records"):
        if row["method"] == "end_to_end":
            known = budget.get(row["run"]) or ls.BUDGETS[2]
            families.append(f"{METHOD_NAMES['end_to_end']}, {known}")
            continue
        turns = METHOD_NAMES[row["method"]].replace(" blocks", "")
        parts = [turns, STRATEGY_NAMES.get(row["partition"], row["partition"])]
        parts.append(f"{row['embedding']} embedding")
        if overlaps:
            parts.append(f"overlap {row['overlap']:g}")
        if not even_layers(row["layers_per_block"]):
            parts.append(f"layers {row['layers_per_block']}")
        if row["iterations_scale"] != 1:
            parts.append(f"iterations × {row['iterations_scale']:g}")
        families.append(", ".join(parts))
    return frame.assign(family=families)


def looks(data: pd.DataFrame) -> dict[str, tuple]:
    """Colour, marker and dash of every family in a frame; no two block-wise ones share theirs."""
    found: dict[str, tuple] = {}
    spare = iter(SPARE_LOOKS * len(data))
    runs = data[data["family"] != ""].drop_duplicates("family")
    for row in runs.sort_values("family", kind="stable").to_dict("records"):
        if row["method"] == "end_to_end":
            budget = row["family"].partition(", ")[2]
            found[row["family"]] = WHOLE_LOOKS[budget]
            continue
        look = LOOKS.get((row["method"], row["partition"], row["embedding"]))
        found[row["family"]] = next(spare) if look is None or look in found.values() else look
    order = {look: place for place, look in enumerate([*WHOLE_LOOKS.values(), *LOOKS.values()])}
    return dict(sorted(found.items(), key=lambda item: order.get(item[1], len(order))))


def measured_on(setting: dict[str, str]) -> str:
    """The scale in words: network, data and tokeniser."""
    get = {**dict.fromkeys(("layers", "width", "dataset", "tokenizer"), "?"), **setting}
    return (
        f"Transformer {get['layers']}×{get['width']} on {get['dataset']}, tokeniser "
        f"{get['tokenizer']}"
    )


def _note(setting: dict[str, str], data: pd.DataFrame, rest: str = "") -> str:
    counts = data.loc[data["n_seeds"] > 0, "n_seeds"]
    return f"{measured_on(setting)}. {interval_note(counts)} Black dots: single seeds. {rest}"


# ---------------------------------------------------------------- scores against B

_SCORE_COLUMNS = (
    "kind,panel,metric,sampling,method,blocks,partition,embedding,overlap,layers_per_block,"
    "iterations_scale,family,extractor,samples,mean,low,high,n_seeds,values,spreads"
).split(",")


def score_data(scores: pd.DataFrame, floors: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Some metrics over seeds, a row a configuration and way of sampling, and the floors.

    Returns:
        columns kind (run, real, ngram or judge), panel (way of sampling in words, or the metric),
        those of a configuration, family, mean, low, high, n_seeds, values (seed by seed) and
        spreads (of MAUVE over k-means seeds, seed by seed; empty for other metrics).
    """
    rows = with_families(scores[scores["metric"].isin(metrics) & scores["value"].notna()], scores)
    spread = scores[scores["metric"] == "mauve_spread"].set_index(["run", "sampling"])["value"]
    keys = ["metric", "sampling", *ls.CONFIGURATION, "family", "extractor", "samples"]
    runs = over_seeds(rows, keys).assign(kind="run")
    spreads = [
        " ".join(f"{spread.get((run, names[1]), np.nan):.6g}" for run in group["run"])
        if names[0] == "mauve"
        else ""
        for names, group in rows.groupby(keys, dropna=False, sort=False)
    ]
    floor = floors[floors["metric"].isin(metrics) & floors["value"].notna()]
    known = floors[floors["metric"] == "mauve_spread"].set_index("kind")["value"]
    floor = floor.assign(mean=floor["value"], values=floor["value"].astype(str), family="")
    floor["spreads"] = [
        f"{known.get(kind, np.nan):.6g}" if metric == "mauve" else ""
        for kind, metric in zip(floor["kind"], floor["metric"], strict=True)
    ]
    names = sampling_names(scores)
    filled = [f for f in (runs.assign(spreads=spreads), floor) if len(f)] or [runs]
    both = pd.concat([frame.astype(object) for frame in filled], ignore_index=True)
    panel = [
        names.get(sampling) or (MATCHED if metric.endswith("matched") else ls.METRIC_NAMES[metric])
        for metric, sampling in zip(both["metric"], both["sampling"], strict=True)
    ]
    both = both.assign(panel=panel).reindex(columns=_SCORE_COLUMNS)
    numbers = ["blocks", "overlap", "iterations_scale", "samples", "mean", "low", "high", "n_seeds"]
    both[numbers] = both[numbers].apply(pd.to_numeric)
    return both


def _floors_of(data: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A floor is measured once; it belongs into every panel of its metric."""
    plain = metric.replace("_matched", "")
    return data[(data["kind"] != "run") & (data["metric"] == plain)].drop_duplicates("kind")


def _score_axes(ax: Axes, runs: pd.DataFrame, floor: pd.DataFrame, look: dict[str, tuple]) -> None:
    """One panel: end to end as bands, families as points over B, floors as lines."""
    for row in runs[runs["method"] == "end_to_end"].to_dict("records"):
        colour, _, dash = look[row["family"]]
        band(ax, pd.Series(row), (colour, "", ""), row["family"], dash)
    blockwise = runs[runs["method"] != "end_to_end"]
    here = [family for family in look if family in set(blockwise["family"])]
    for place, family in enumerate(here):
        rows = blockwise[blockwise["family"] == family].sort_values("blocks")
        shift = 0.1 * (place - (len(here) - 1) / 2)
        points(ax, rows["blocks"] + shift, rows, look[family], family)
        _spreads(ax, rows["blocks"] + shift, rows)
    for row in floor.itertuples():
        name, dash, _ = FLOORS[row.kind]
        ax.axhline(row.mean, color=FLOOR_COLOUR, ls=dash, lw=1.8, label=name)
    blocks_axis(ax, blockwise["blocks"].astype(int))


def _spreads(ax: Axes, x, rows: pd.DataFrame) -> None:
    """A thin bar through each seed's dot: a standard deviation over k-means seeds either side."""
    for at, values, spreads in zip(x, rows["values"], rows["spreads"], strict=True):
        for value, spread in zip(values.split(), spreads.split(), strict=False):
            ax.plot([at] * 2, [float(value) - float(spread), float(value) + float(spread)],
                    color="black", lw=5, alpha=0.25, solid_capstyle="butt", zorder=4)  # fmt: skip


def _against_blocks(
    data: pd.DataFrame, panels: Sequence[str], label: str, height: float = 2.9
) -> Figure | None:
    """A row of panels that share y; None where no run was scored."""
    runs = data[data["kind"] == "run"]
    if runs.empty or not len(panels):
        return None
    look = looks(runs)
    return facets(
        runs.assign(row=""),
        ("row", [""]),
        ("panel", list(panels)),
        (3.0 if len(panels) > 2 else 3.8, height),
        lambda ax, here: _score_axes(ax, here, _floors_of(data, here["metric"].iloc[0]), look),
        lambda _: label,
        lambda row: row["panel"],
    )


@styled
def likelihood(data: pd.DataFrame, setting: dict[str, str]) -> Figure:
    """Next-token cross-entropy and the likelihood bound against B, in nats a token."""
    title = FIGURES["likelihood"]
    panels = present(data[data["kind"] == "run"], "panel")
    figure = _against_blocks(data, panels, METRIC_LABELS["likelihood"])
    if figure is None:
        return empty(title, "This preset has no likelihoods.")
    x_label(figure, "number of blocks B")
    rest = "End to end both panels show the exact value. The bound's cut is chosen on validation "
    finish(figure, title, _note(setting, data, rest + "text and quoted on test text."))
    return figure


@styled
def mauve(data: pd.DataFrame, setting: dict[str, str]) -> Figure:
    """MAUVE against B: a column a way of sampling; grey bars are its spread over k-means seeds."""
    title = FIGURES["mauve"]
    figure = _against_blocks(
        data, present(data[data["kind"] == "run"], "panel"), METRIC_LABELS["mauve"]
    )
    if figure is None:
        return empty(title, "This preset has no MAUVE.")
    x_label(figure, "number of blocks B")
    for ax in figure.axes:
        for row in _floors_of(data, "mauve").itertuples():
            if row.kind == "real" and float(row.spreads) > 0:
                low, high = row.mean - float(row.spreads), row.mean + float(row.spreads)
                ax.axhspan(low, high, color=FLOOR_COLOUR, alpha=0.15, lw=0)
    features = ", ".join(sorted(set(data["extractor"])))
    rest = "Grey bars and the band of real text: ± one standard deviation over k-means seeds. "
    rest += f"Features: {features}; c = {setting.get('mauve_scaling', '?')}. "
    finish(figure, title, _note(setting, data, rest + _samples_note(data)))
    return figure


def _samples_note(data: pd.DataFrame) -> str:
    counts = sorted({int(n) for n in data.loc[data["kind"] == "run", "samples"].dropna()})
    return f"{' and '.join(f'{n:,}' for n in counts)} samples a run."


@styled
def judged_perplexity(data: pd.DataFrame, setting: dict[str, str]) -> Figure:
    """Generative perplexity against B: a column a way of sampling, and one at equal diversity."""
    title = FIGURES["judged_perplexity"]
    panels = [p for p in present(data[data["kind"] == "run"], "panel") if p != MATCHED]
    panels += [MATCHED] if MATCHED in set(data["panel"]) else []
    figure = _against_blocks(data, panels, METRIC_LABELS["generative_perplexity"])
    if figure is None:
        return empty(title, "This preset has no judged perplexities.")
    x_label(figure, "number of blocks B")
    for ax in figure.axes:
        ax.set_yscale("log")
        log_axis(ax.yaxis, [*data["mean"], *_seeds(data)])
    rest = f"Judge: {setting.get('judge', '?')}. Low perplexity alone is no merit: text that "
    rest += "repeats itself has it too. " + _samples_note(data)
    finish(figure, title, _note(setting, data, rest))
    return figure


def _seeds(data: pd.DataFrame) -> list[float]:
    return [float(v) for text in data["values"] for v in str(text).split()]


# ---------------------------------------------------------------- the bound over its cut

#: Rows of the curve's figure from the top: column, label of the axis.
CURVES = {
    "bound": "bound, nats a token",
    "cross_entropy": "cross-entropy at σ₀,\nnats a token",
}


def bound_data(curve: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Bound and cross-entropy on test text at every cut, over seeds, and the cuts chosen.

    Returns:
        columns quantity (bound, cross_entropy), those of a configuration, family, sigma_0, mean,
        low, high, n_seeds, values, chosen (how many seeds chose this cut on validation text).
        With one seed low and high are ± 1.96 standard errors over sequences.
    """
    test = with_families(curve[curve["split"] == "test"], scores)
    chosen = scores[scores["metric"] == "bound_sigma_0"].set_index("run")["value"]
    keys = [*ls.CONFIGURATION, "family", "sigma_0"]
    frames = []
    for quantity in CURVES:
        rows = over_seeds(test, keys, quantity)
        error = test.groupby(keys, dropna=False, sort=False)[f"{quantity}_error"].mean()
        half = 1.96 * error.to_numpy()
        rows["low"] = rows["low"].where(rows["n_seeds"] > 1, rows["mean"] - half)
        rows["high"] = rows["high"].where(rows["n_seeds"] > 1, rows["mean"] + half)
        rows["chosen"] = [
            sum(np.isclose(chosen.get(run, np.nan), names[-1], rtol=1e-6) for run in group["run"])
            for names, group in test.groupby(keys, dropna=False, sort=False)
        ]
        frames.append(rows.assign(quantity=quantity))
    columns = ["quantity", *keys, "mean", "low", "high", "n_seeds", "values", "chosen"]
    return pd.concat(frames, ignore_index=True)[columns]


@styled
def bound_curve(data: pd.DataFrame, setting: dict[str, str], scores: pd.DataFrame) -> Figure:
    """Bound and cross-entropy against σ₀: a column a B, a line a family, end to end as a band."""
    title = FIGURES["bound_curve"]
    if data.empty:
        return empty(title, "This preset has no bounds over cuts.")
    look = looks(data)
    noise = noise_law(setting)
    whole = with_families(scores[scores["metric"] == "likelihood_bound"], scores)
    whole = over_seeds(whole[whole["method"] == "end_to_end"], ["family", "method"])
    whole_looks = looks(whole.assign(partition="", embedding=""))
    counts = sorted(set(data["blocks"]))
    figure = facets(
        data,
        ("quantity", list(CURVES)),
        ("blocks", counts),
        (3.6, 2.2),
        lambda ax, here: _curve_axes(ax, here, look, noise),
        CURVES.__getitem__,
        lambda row: f"B = {row['blocks']}" if row["quantity"] == "bound" else "",
    )
    bound = data[data["quantity"] == "bound"]
    # Where the cut lies below all that text needs, bounds of thousands would flatten the rest, and
    # a t interval of those can end below zero, where a logarithmic axis has no place.
    best = bound.groupby(["blocks", "family"])["mean"].min()
    low = min([*bound["mean"], *whole["mean"]])
    high = min(bound["mean"].max() * 1.15, 3 * max([*best, *whole["mean"]]))
    # Marks of handing over stand below the lowest curve, a row a line.
    foot = 0.07 + 0.05 * len(look)
    low = np.exp((np.log(low) - foot * np.log(high)) / (1 - foot))
    for ax in figure.axes:
        if not ax.get_subplotspec().is_first_row():
            ax.set_ylim(bottom=0)
            continue
        for row in whole.to_dict("records"):
            colour, _, dash = whole_looks[row["family"]]
            band(ax, pd.Series(row), (colour, "", ""), row["family"], dash)
        ax.set_yscale("log")
        ax.set_ylim(low, high)
        log_axis(ax.yaxis, [low, high])
    x_label(figure, "cut σ₀ (units of the embedding)")
    bars = interval_note(data["n_seeds"])
    if data["n_seeds"].max() < 2:
        bars = "One seed: bands are ± 1.96 standard errors over sequences."
    note = f"{measured_on(setting)}; test text. {bars} Stars: cuts chosen on validation text. An "
    note += "exact denoiser's bound would be level."
    if bound["mean"].max() > high:
        note += f" Bounds above {high:.0f} leave the picture (up to {bound['mean'].max():.0f})."
    finish(figure, title, note)
    return figure


def _curve_axes(ax: Axes, here: pd.DataFrame, look: dict[str, tuple], noise) -> None:
    for height, family in enumerate(f for f in look if f in set(here["family"])):
        rows = here[here["family"] == family].sort_values("sigma_0")
        colour, marker, dash = look[family]
        ax.plot(
            rows["sigma_0"], rows["mean"], color=colour, marker=marker, ls=dash, ms=4, label=family
        )
        ax.fill_between(rows["sigma_0"], rows["low"], rows["high"], color=colour, alpha=0.18, lw=0)
        if here["quantity"].iloc[0] != "bound":
            continue
        stars = rows[rows["chosen"] > 0]
        ax.plot(stars["sigma_0"], stars["mean"], "*", color=colour, ms=13, mec="black", zorder=5)
        first = rows.iloc[0]
        cuts = [r.sigma_lo for r in partition(first["partition"], noise, int(first["blocks"]))]
        ax.plot(
            cuts[:-1],
            [0.03 + 0.05 * height] * (len(cuts) - 1),
            "|",
            color=colour,
            ms=8,
            mew=2,
            transform=ax.get_xaxis_transform(),
            label="where blocks hand over (one row a line)" if height == 0 else "_",
        )
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


# ---------------------------------------------------------------- diversity against perplexity

_DIVERSITIES = {"distinct_2": "distinct-2, share", "repetition": "repetition rate, share"}


def diversity_data(scores: pd.DataFrame, floors: pd.DataFrame) -> pd.DataFrame:
    """Diversity and judged perplexity of the same samples, a row a run and way of sampling.

    Returns:
        columns kind, measure (distinct_2 or repetition), diversity, perplexity, perplexity_error
        (over samples), sampling, temperature, family, those of a configuration, seed.
    """
    wanted = [*_DIVERSITIES, "generative_perplexity"]
    rows = with_families(scores[scores["metric"].isin(wanted)], scores).assign(kind="run")
    # The floors' own ways of sampling are told apart by their kind.
    floor = floors[floors["metric"].isin(wanted)].assign(family="", run=lambda f: f["kind"])
    filled = [frame for frame in (rows, floor) if len(frame)] or [rows]
    both = pd.concat(filled, ignore_index=True)
    keys = ["kind", "run", "sampling"]
    judged = both[both["metric"] == "generative_perplexity"]
    judged = judged[[*keys, "value", "error"]].rename(
        columns={"value": "perplexity", "error": "perplexity_error"}
    )
    varied = both[both["metric"].isin(_DIVERSITIES)]
    varied = varied.rename(columns={"metric": "measure", "value": "diversity"})
    found = varied.merge(judged, on=keys, validate="many_to_one")
    columns = ["kind", "measure", "diversity", "perplexity", "perplexity_error", "sampling"]
    columns += ["temperature", "family", *ls.CONFIGURATION, "run", "seed"]
    return found.dropna(subset=["diversity", "perplexity"]).reindex(columns=columns)


@styled
def diversity(data: pd.DataFrame, setting: dict[str, str], scores: pd.DataFrame) -> Figure:
    """Judged perplexity over diversity: a line a configuration through its temperatures."""
    title = FIGURES["diversity"]
    runs = data[data["kind"] == "run"]
    if runs.empty:
        return empty(title, "This preset has no judged samples.")
    look = looks(runs)
    matched = scores[scores["metric"] == "generative_perplexity_matched"]
    counts = sorted(set(runs.loc[runs["method"] != "end_to_end", "blocks"].astype(int)))
    whole = runs[runs["method"] == "end_to_end"]
    panels = [
        pd.concat([whole, runs[(runs["method"] != "end_to_end") & (runs["blocks"] == B)]]).assign(
            panel=f"B = {B}"
        )
        for B in counts
    ] or [whole.assign(panel="end to end only")]
    shown = pd.concat(panels)
    measures = [m for m in _DIVERSITIES if m in set(shown["measure"])]
    figure = facets(
        shown,
        ("measure", measures),
        ("panel", present(shown, "panel")),
        (3.9, 2.8),
        lambda ax, here: _diversity_axes(ax, here, data, look),
        lambda _: "judged perplexity a token",
        lambda row: row["panel"] if row["measure"] == measures[0] else "",
    )
    for ax in figure.axes:
        ax.set_yscale("log")
        log_axis(ax.yaxis, data["perplexity"])
    _measure_labels(figure, measures)
    target = sorted({n.partition("=")[2] for n in matched["note"] if n.startswith("distinct_2=")})
    if target and matched["value"].notna().any():
        for ax in figure.axes:
            if ax.get_subplotspec().is_first_row():
                ax.axvline(
                    float(target[0]),
                    color="#555555",
                    lw=1,
                    ls=":",
                    label="equal diversity, where runs are compared",
                )
    note = f"{measured_on(setting)}; judge: {setting.get('judge', '?')}. Large markers: means over "
    note += "seeds, joined along the temperatures; small ones: single seeds. Above, right and down "
    finish(figure, title, note + "is better; below, left and down. Near the star is best.")
    return figure


def _measure_labels(figure: Figure, measures: list[str]) -> None:
    for ax in figure.axes:
        row = ax.get_subplotspec().rowspan.start
        ax.set_xlabel(_DIVERSITIES[measures[row]])
        ax.tick_params(labelbottom=True)


def _diversity_axes(ax: Axes, here: pd.DataFrame, data: pd.DataFrame, look: dict) -> None:
    for family in (f for f in look if f in set(here["family"])):
        rows = here[here["family"] == family]
        colour, marker, dash = look[family]
        ax.plot(
            rows["diversity"], rows["perplexity"], marker, color=colour, ms=3.5, alpha=0.5, zorder=2
        )
        means = rows.groupby("temperature")[["diversity", "perplexity"]].mean().sort_index()
        ax.plot(
            means["diversity"],
            means["perplexity"],
            color=colour,
            marker=marker,
            ls=dash,
            lw=1.2,
            ms=7,
            label=family,
            zorder=3,
        )
    floor = data[(data["kind"] != "run") & (data["measure"] == here["measure"].iloc[0])]
    for row in floor.drop_duplicates("kind").itertuples():
        name, _, marker = FLOORS[row.kind]
        ax.plot(
            [row.diversity],
            [row.perplexity],
            marker,
            color="#CC79A7" if row.kind == "real" else FLOOR_COLOUR,
            ms=15 if row.kind == "real" else 9,
            mec="black",
            ls="none",
            label=name,
            zorder=4,
        )


# ---------------------------------------------------------------- speed of generation

_SPEEDS = {
    "tokens_per_second": "tokens a second\n(higher is better)",
    "layer_passes_per_token": "layer passes a token\n(lower is cheaper)",
}


def throughput_data(generation: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Speed of the main way of sampling over seeds; end to end's budgets are one network.

    Returns:
        columns measure, those of a configuration without iterations_scale, family, sampling,
        steps, cache, prompts, new_tokens, mean, low, high, n_seeds, values.
    """
    rows = with_families(ls.speeds(generation, main_sampling(generation)), scores)
    whole = rows["method"] == "end_to_end"
    rows["family"] = rows["family"].where(~whole, METHOD_NAMES["end_to_end"])
    keys = [c for c in ls.CONFIGURATION if c != "iterations_scale"]
    keys += ["family", "sampling", "steps", "cache", "prompts", "new_tokens"]
    frames = [over_seeds(rows, keys, measure).assign(measure=measure) for measure in _SPEEDS]
    columns = ["measure", *keys, "mean", "low", "high", "n_seeds", "values"]
    return pd.concat(frames, ignore_index=True)[columns]


@styled
def throughput(data: pd.DataFrame, setting: dict[str, str]) -> Figure:
    """Tokens a second and layer passes a token against B; end to end as a band."""
    title = FIGURES["throughput"]
    if data.empty:
        return empty(title, "This preset generated nothing.")
    # One line for end to end here: how long it was trained does not matter to its speed.
    look = looks(data[data["method"] != "end_to_end"])
    figure = Figure(figsize=(8.4, 3.0))
    for ax, (measure, label) in zip(figure.subplots(1, 2), _SPEEDS.items(), strict=True):
        here = data[data["measure"] == measure]
        for row in here[here["method"] == "end_to_end"].to_dict("records"):
            band(ax, pd.Series(row), "end_to_end", row["family"])
        families = [f for f in look if f in set(here["family"])]
        for place, family in enumerate(families):
            rows = here[here["family"] == family].sort_values("blocks")
            shift = 0.1 * (place - (len(families) - 1) / 2)
            points(ax, rows["blocks"] + shift, rows, look[family], family)
        blocks_axis(ax, here.loc[here["method"] != "end_to_end", "blocks"].astype(int))
        ax.set_ylim(bottom=0)
        ax.set_ylabel(label)
        ax.set_xlabel("number of blocks B")
    first = data.iloc[0]
    note = f"{measured_on(setting)}; {setting.get('device', '?')}. {interval_note(data['n_seeds'])}"
    note += f" {first['prompts']:g} prompts at once, {first['new_tokens']:g} new tokens each, "
    steps = f"{first['steps']:g} denoising steps a token for blocks"
    finish(figure, title, note + steps + f", key-value cache {_on(first['cache'])}.")
    return figure


def _on(value) -> str:
    return "on" if str(value) == "True" else "off"


# ---------------------------------------------------------------- published against measured

PUBLISHED_COLUMNS = (
    "source,version,table,dataset,model,metric,judged_by,method,blocks,partition,layers_per_block,"
    "embedding,family,sampling,value,end_to_end,ratio,low,high,n_seeds"
).split(",")
#: What is compared, a panel each, and the published metrics that belong there.
_PUBLISHED_METRICS = {
    "mauve": ("mauve",),
    "generative_perplexity": ("generative_ppl_llama2_7b", "generative_ppl_gpt2_xl"),
    "generative_perplexity_matched": (),
}
_JUDGES = {"generative_ppl_llama2_7b": "Llama-2 7B", "generative_ppl_gpt2_xl": "GPT-2 XL"}
_PUBLISHED_MARKERS = "osD^v<>"


def published_data(published: pd.DataFrame) -> pd.DataFrame:
    """The paper's text scores relative to its own end-to-end network.

    Tables that print no end-to-end row (A3) use the one of the same version, data, model and
    metric that another table prints.
    """
    text = published[published["task"] == "language_modelling"]
    same = ["version", "dataset", "model", "metric", "split"]
    whole = text[text["method"] == "end_to_end"].drop_duplicates(same)
    whole = whole[[*same, "value"]].rename(columns={"value": "end_to_end"})
    rows = text[text["method"] == "blockwise"].merge(whole, on=same)
    metric = {name: key for key, names in _PUBLISHED_METRICS.items() for name in names}
    return rows.assign(
        source="published",
        judged_by=rows["metric"].map(_JUDGES).fillna(""),
        metric=rows["metric"].map(metric),
        blocks=rows["blocks"].astype(int),
        ratio=rows["value"] / rows["end_to_end"],
        n_seeds=1,
    ).reindex(columns=PUBLISHED_COLUMNS)


def measured_data(scores: pd.DataFrame, setting: dict[str, str]) -> pd.DataFrame:
    """Our scores relative to end to end of the same seed at equal layer evaluations.

    Ratios of perplexities are averaged as logarithms. MAUVE and perplexity are those of the main
    way of sampling; perplexity at equal diversity stands beside them, which the paper has not.
    """
    main = main_sampling(scores)
    wanted = scores["metric"].isin(_PUBLISHED_METRICS) & scores["sampling"].isin([main, ""])
    rows = with_families(scores[wanted & scores["value"].notna()], scores)
    keys = ["metric", "sampling", "seed", "layer_evaluations"]
    whole = rows[rows["method"] == "end_to_end"].drop_duplicates(keys)
    whole = whole[[*keys, "value"]].rename(columns={"value": "end_to_end"})
    both = rows[rows["method"] != "end_to_end"].merge(whole, on=keys)
    both = both.assign(ratio=both["value"] / both["end_to_end"])
    table = []
    named = ["dataset", "metric", "sampling", "extractor", *ls.CONFIGURATION[2:], "family"]
    for names, group in both.groupby(named, dropna=False, sort=False):
        found = dict(zip(named, names, strict=True))
        perplexity = found["metric"] in ls.RATIOS
        interval = t_interval(np.log(group["ratio"]) if perplexity else group["ratio"])
        shown = [interval.mean, interval.low, interval.high]
        ratio, low, high = np.exp(shown) if perplexity else shown
        table.append(
            found
            | {"judged_by": found["extractor"] if perplexity else ""}
            | {"value": group["value"].mean(), "end_to_end": group["end_to_end"].mean()}
            | {"ratio": ratio, "low": low, "high": high, "n_seeds": interval.n}
        )
    model = f"Transformer {setting.get('layers', '?')}×{setting.get('width', '?')}"
    frame = pd.DataFrame(table).assign(source="measured", version="", table="", model=model)
    return frame.reindex(columns=PUBLISHED_COLUMNS)


def published_vs_measured_data(
    scores: pd.DataFrame, published: pd.DataFrame, setting: dict[str, str]
) -> pd.DataFrame:
    """Published and measured ratios to end to end, one row each."""
    parts = [published_data(published), measured_data(scores, setting)]
    filled = [part.astype(object) for part in parts if len(part)] or parts[:1]
    table = pd.concat(filled, ignore_index=True)
    numbers = ["blocks", "value", "end_to_end", "ratio", "low", "high", "n_seeds"]
    table[numbers] = table[numbers].apply(pd.to_numeric)
    table = table.assign(family=table["family"].fillna(""))
    order = ["metric", "blocks", "source", "version", "dataset", "family"]
    return table.sort_values(order, ascending=[False, True, False, True, True, True],
                             ignore_index=True)  # fmt: skip


@styled
def published_vs_measured(data: pd.DataFrame, setting: dict[str, str]) -> Figure:
    """Ratios to end to end, MAUVE and perplexity: published hollow, measured filled, over B."""
    title = (
        FIGURES["text_published_vs_measured"] + f" (filled: {measured_on(setting)}; hollow: the "
    )
    title += "paper's 12-layer networks)"
    if data.empty:
        return empty(title, "There is neither a published nor a measured score to show.")
    metrics = [m for m in _PUBLISHED_METRICS if m in set(data["metric"])]
    counts = sorted(set(data["blocks"].astype(int)))
    measured = data[data["source"] == "measured"]
    look = looks(measured)
    sources = _published_sources(data)
    figure = Figure(figsize=(3.3 * len(metrics) + 0.6, 3.4))
    grid = figure.subplots(1, len(metrics), squeeze=False)[0]
    for ax, metric in zip(grid, metrics, strict=True):
        here = data[data["metric"] == metric]
        ax.axhline(1, color="#000000", lw=1.4, label=METHOD_NAMES["end_to_end"])
        for B, rows in here.groupby("blocks"):
            _ratio_markers(ax, counts.index(int(B)), rows, look, sources)
        ax.set_yscale("log")
        # Two seeds can have intervals of many decades; they may leave the picture, means may not.
        least, most = here["ratio"].min(), here["ratio"].max()
        low = 0.93 * max(min(least, here["low"].min(), 0.9), min(least, 1) / 1.8)
        high = 1.07 * min(max(most, here["high"].max(), 1.1), max(most, 1) * 1.8)
        ax.set_ylim(low, high)
        log_axis(ax.yaxis, [low, high])
        ax.set_xticks(range(len(counts)), [str(B) for B in counts])
        ax.set_xlim(-0.6, len(counts) - 0.4)
        ax.set_xlabel("number of blocks B")
        better = "above 1" if metric == "mauve" else "below 1"
        ax.set_ylabel(f"ratio to end to end\n({better} is better)")
        ax.set_title(ls.METRIC_NAMES[metric], fontsize=9)
    note = "Only ratios compare across data, networks, features and judges. Published values have "
    note += "no intervals. Measured: at equal layer evaluations. "
    finish(figure, title, note + interval_note(measured["n_seeds"]))
    return figure


def _published_sources(data: pd.DataFrame) -> dict[tuple, tuple[str, str]]:
    """Marker and name of every published series: data set, judge and version."""
    rows = data[data["source"] == "published"]
    keys = list(
        dict.fromkeys(zip(rows["dataset"], rows["judged_by"], rows["version"], strict=True))
    )
    found = {}
    for k, (dataset, judge, version) in enumerate(keys):
        name = f"published: {dataset}" + (f", {judge}" if judge else "")
        name += "" if version == "v2" else f" ({version})"
        found[dataset, judge, version] = (_PUBLISHED_MARKERS[k % len(_PUBLISHED_MARKERS)], name)
    return found


def _ratio_markers(ax: Axes, place: int, rows: pd.DataFrame, look: dict, sources: dict) -> None:
    """All ratios of one metric and B side by side: published to the left, measured to the right."""
    shown = list(rows.sort_values("source", ascending=False, kind="stable").itertuples())
    step = min(0.12, 0.8 / max(1, len(shown)))
    for k, row in enumerate(shown):
        at = place + step * (k - (len(shown) - 1) / 2)
        if row.source == "published":
            marker, name = sources[row.dataset, row.judged_by, row.version]
            style = {"mfc": "none", "mec": "#333333", "mew": 1.4, "ms": 7}
            ax.plot([at], [row.ratio], marker=marker, ls="none", label=name, zorder=4, **style)
            continue
        colour, marker, _ = look[row.family]
        spread = np.array([[row.ratio - row.low], [row.high - row.ratio]])
        ax.errorbar(
            [at],
            [row.ratio],
            yerr=None if np.isnan(spread).any() else spread,
            marker=marker,
            ls="none",
            color=colour,
            capsize=2,
            lw=1.1,
            label=f"measured: {row.family}",
            zorder=3,
        )
