"""The language report on made-up tables: statistics, words, figures and the notebook."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
from language_tables import END_TO_END, FULL, MATCHED_NOTE, SPARSE, TRUTH, write_tables
from test_figures import foot, overlapping, texts_with_boxes

from diffusionblocks.report import language_figures as draw
from diffusionblocks.report import language_statistics as ls
from diffusionblocks.report import language_words as say
from diffusionblocks.report import read_setting, read_table
from diffusionblocks.report.statistics import Interval

ROOT = Path(__file__).resolve().parent.parent
LIKELIHOODS = ["next_token_cross_entropy", "likelihood_bound"]
PERPLEXITIES = ["generative_perplexity", "generative_perplexity_matched"]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return write_tables(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    return write_tables(tmp_path_factory.mktemp("sparse"), SPARSE, (0,))


def published():
    return read_table(ROOT / "workflow" / "config", "published")


def figure_and_data(name, folder, keep=lambda frame: frame):
    """One figure, drawn from the tables as the notebook does.

    Args:
        keep: what to keep of every table but the setting.
    """
    setting = read_setting(folder)
    scores, floors, curve, generation = (
        keep(read_table(folder, table))
        for table in ("scores", "floors", "bound_curve", "generation")
    )
    if name == "likelihood":
        data = draw.score_data(scores, floors, LIKELIHOODS)
        return draw.likelihood(data, setting), data
    if name == "bound_curve":
        data = draw.bound_data(curve, scores)
        return draw.bound_curve(data, setting, scores), data
    if name == "mauve":
        data = draw.score_data(scores, floors, ["mauve"])
        return draw.mauve(data, setting), data
    if name == "judged_perplexity":
        data = draw.score_data(scores, floors, PERPLEXITIES)
        return draw.judged_perplexity(data, setting), data
    if name == "diversity":
        data = draw.diversity_data(scores, floors)
        return draw.diversity(data, setting, scores), data
    if name == "throughput":
        data = draw.throughput_data(generation, scores)
        return draw.throughput(data, setting), data
    data = draw.published_vs_measured_data(scores, keep(published()), setting)
    return draw.published_vs_measured(data, setting), data


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("name", draw.FIGURES)
@pytest.mark.parametrize("tables", ["full", "sparse"])
def test_figures_name_their_axes_and_no_text_overlaps(name, tables, request):
    figure, _ = figure_and_data(name, request.getfixturevalue(tables))
    boxes = texts_with_boxes(figure)
    assert not [(a, b) for (a, i), (b, j) in combinations(boxes, 2) if overlapping(i, j)]
    width, height = figure.get_size_inches() * figure.dpi
    assert not [t for t, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > width + 1]
    assert all(b.y1 <= height + 1 for _, b in boxes)
    for ax in figure.axes:
        place = ax.get_subplotspec()
        assert ax.get_xlabel() or not place.is_last_row()
        assert ax.get_ylabel() or not place.is_first_col()


@pytest.mark.parametrize("name", draw.FIGURES)
def test_figures_of_empty_tables_say_so(name, full):
    figure, data = figure_and_data(name, full, lambda frame: frame.iloc[:0])
    assert data.empty and not figure.axes
    assert "This preset" in foot(figure) or "There is neither" in foot(figure)


def test_looks_are_told_apart_and_no_two_families_share_one(full):
    scores = read_table(full, "scores")
    data = draw.with_families(scores, scores)
    assert len(draw.looks(data)) == len(FULL) - 1  # B = 2 and 3 are one line
    odd = scores[scores["blocks"] == 3].assign(embedding="from_checkpoint", overlap=0.05)
    both = draw.with_families(*[pd.concat([scores, odd])] * 2)
    looks = draw.looks(both)
    assert len(looks) == both["family"].nunique() > len(FULL)
    assert len(set(looks.values())) == len(looks)
    assert all("overlap" in f for f in looks if "end to end" not in f)


def test_scores_are_drawn_at_their_means_with_their_intervals(full):
    figure, data = figure_and_data("likelihood", full)
    rows = data[(data["kind"] == "run") & (data["metric"] == "likelihood_bound")]
    family = "independent, equal mass, frozen embedding"
    (bars,) = [c for c in figure.axes[1].containers if c.get_label() == family]
    line, _, (segments,) = bars
    mine = rows[rows["family"] == family].sort_values("blocks")
    assert line.get_ydata() == pytest.approx(mine["mean"].to_numpy())
    ends = np.array([[a[1], b[1]] for a, b in segments.get_segments()])
    assert ends == pytest.approx(mine[["low", "high"]].to_numpy())
    truth = [END_TO_END + TRUTH[c] for c in FULL[2:4]]
    assert mine["mean"].to_numpy() == pytest.approx(truth, abs=0.2)
    assert "95 % t intervals over 3 seeds" in foot(figure)
    names = {label for ax in figure.axes for label in ax.get_legend_handles_labels()[1]}
    assert {"n-gram model", "end to end, equal layer evaluations"} <= names


def test_mauve_shows_its_spread_over_clusterings_and_real_text(full):
    figure, data = figure_and_data("mauve", full)
    assert set(data.loc[data["kind"] == "run", "spreads"]) == {"0.03 0.03 0.03"}
    bars = [line for line in figure.axes[0].lines if line.get_linewidth() == 5]
    assert len(bars) == 3 * 5  # seeds × block-wise configurations
    assert np.ptp(bars[0].get_ydata()) == pytest.approx(0.06)
    assert "real held-out text" in figure.axes[-1].get_legend_handles_labels()[1]


def test_one_seed_of_a_bound_has_bands_over_sequences(full, sparse):
    _, data = figure_and_data("bound_curve", sparse)
    assert (data["high"] - data["mean"]).to_numpy() == pytest.approx(1.96 * 0.02)
    _, data = figure_and_data("bound_curve", full)
    chosen = data[data["chosen"] > 0]
    assert set(chosen["sigma_0"]) == {1.0} and set(chosen["chosen"]) == {3}


def test_a_bound_whose_interval_ends_below_zero_is_drawn(full):
    """As happens at the smallest cut, where seeds differ by thousands of nats."""

    def scattered(table):
        if "bound" in table:
            far = table["sigma_0"] == table["sigma_0"].min()
            table.loc[far, "bound"] *= 10.0 ** table.loc[far, "seed"].astype(int)
        return table

    figure, data = figure_and_data("bound_curve", full, scattered)
    bound = data[data["quantity"] == "bound"]
    assert bound["low"].min() < 0
    low, high = figure.axes[0].get_ylim()
    assert 0 < low < bound["mean"].min() and bound.groupby("family")["mean"].min().max() < high
    assert ("leave the picture" in foot(figure)) == (bound["mean"].max() > high)


def test_floors_stand_in_the_scatter_and_lines_follow_the_temperature(full):
    figure, data = figure_and_data("diversity", full)
    assert set(data["kind"]) == {"run", "real", "ngram"}
    for ax in figure.axes:
        (line,) = [x for x in ax.lines if x.get_label() == "end to end, equal layer evaluations"]
        assert len(line.get_xdata()) == 3
        assert (np.diff(line.get_ydata()) > 0).all()
        assert "real held-out text" in ax.get_legend_handles_labels()[1]


def test_published_markers_are_hollow_and_measured_ones_filled(full):
    figure, data = figure_and_data("text_published_vs_measured", full)
    kinds = {"published": set(), "measured": set()}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            kind = label.partition(":")[0]
            if kind in kinds:
                line = handle[0] if kind == "measured" else handle
                kinds[kind].add(str(line.get_markerfacecolor()))
    assert kinds["published"] == {"none"}
    assert kinds["measured"] and "none" not in kinds["measured"]
    four = data[(data["source"] == "published") & (data["table"] == "4")]
    lm1b = four[(four["dataset"] == "LM1B") & (four["metric"] == "mauve")]
    assert lm1b["ratio"].tolist() == pytest.approx([0.71 / 0.50])
    # Table A3 prints no end-to-end row; the one of the same network stands in table 4.
    a3 = data[(data["table"] == "A3") & (data["blocks"] == 2)]
    assert a3["ratio"].tolist() == pytest.approx([0.61 / 0.50])


def test_measured_ratios_are_paired_by_seed_at_equal_layer_evaluations(full):
    scores = read_table(full, "scores")
    mauve = scores[(scores["metric"] == "mauve") & (scores["sampling"] == "plain")]
    two = mauve[mauve["blocks"] == 2].set_index("seed")["value"]
    twice = mauve[mauve["iterations_scale"] == 2].set_index("seed")["value"]
    data = draw.measured_data(scores, read_setting(full))
    row = data[(data["blocks"] == 2) & (data["metric"] == "mauve")]
    assert row["ratio"].tolist() == pytest.approx([(two / twice).mean()])
    assert set(data["sampling"]) == {"plain", ""}


# ---------------------------------------------------------------- statistics and words


@pytest.mark.parametrize(
    ("low", "high", "better", "expected"),
    [
        (-0.3, -0.1, "lower", "better"),
        (-0.3, 0.4, "lower", "matches"),
        (0.1, 0.4, "lower", "matches"),
        (0.1, 0.6, "lower", "worse"),
        (-0.1, 0.6, "lower", "undecided"),
        (0.1, 0.6, "higher", "better"),
        (-0.4, 0.1, "higher", "matches"),
        (-0.6, -0.1, "higher", "worse"),
        (-0.1, 0.6, "neutral", ""),
    ],
)
def test_match_goes_by_the_worse_end_of_the_interval(low, high, better, expected):
    interval = Interval((low + high) / 2, low, high, 3, 0.5)
    assert ls.match("likelihood_bound", interval, better, 10.0) == expected
    alone = Interval(0.0, np.nan, np.nan, 1, np.nan)
    assert ls.match("likelihood_bound", alone, better, 10.0) == "not tested"


def test_match_of_a_ratio_is_a_factor():
    near, far = (Interval(x, x - 0.001, x + 0.001, 3, 0.0) for x in (np.log(1.04), np.log(1.06)))
    assert ls.match("generative_perplexity", near, "lower", 50.0) == "matches"
    assert ls.match("generative_perplexity", far, "lower", 50.0) == "worse"


def asked(scores, question, metric):
    table = ls.comparisons(scores)
    return table[(table["question"] == question) & (table["metric"] == metric)]


def test_comparisons_find_the_truth(full):
    scores = read_table(full, "scores")
    bound = asked(scores, "layer_evaluations", "likelihood_bound")
    truth = [TRUTH[c] for c in FULL[2:]]
    assert bound["effect"].to_numpy() == pytest.approx(truth, abs=0.05)
    assert bound["match"].tolist() == ["matches"] + ["worse"] * 4
    assert (bound["p_holm"] >= bound["p_value"]).all() and set(bound["n_seeds"]) == {3}
    tokens = asked(scores, "tokens_seen", "likelihood_bound")
    assert tokens["effect"].to_numpy() == pytest.approx(np.array(truth) - 0.2, abs=0.05)
    assert tokens["reading"].iloc[0] == "better"
    matched = asked(scores, "layer_evaluations", "generative_perplexity_matched")
    assert matched["effect"].to_numpy() == pytest.approx(np.exp(truth), rel=0.05)
    assert (matched["low"] < matched["effect"]).all() and set(matched["unit"]) == {"ratio"}
    (partition,) = asked(scores, "partition", "likelihood_bound").to_dict("records")
    assert partition["effect"] == pytest.approx(0.5 - 0.9, abs=0.05)
    (joint,) = asked(scores, "embedding", "likelihood_bound").to_dict("records")
    assert joint["effect"] == pytest.approx(-0.05, abs=0.05)


def test_unequal_runs_are_never_compared(full):
    scores = read_table(full, "scores")
    whole = scores["method"] == "end_to_end"
    dearer = scores.assign(layer_evaluations=scores["layer_evaluations"] + whole)
    assert set(asked(dearer, "layer_evaluations", "mauve")["n_seeds"]) == {0}
    assert set(asked(dearer, "layer_evaluations", "mauve")["match"]) == {"not tested"}
    assert draw.measured_data(dearer, {}).empty
    fewer = scores.assign(samples=scores["samples"] + whole)
    assert set(asked(fewer, "tokens_seen", "mauve")["n_seeds"]) == {0}
    assert set(ls.budgets(dearer[whole])) == {"other cost"}


def test_undefined_values_are_left_out_and_said(full):
    scores = read_table(full, "scores")
    matched = scores["metric"] == "generative_perplexity_matched"
    scores.loc[matched, "value"] = np.nan
    table, floors = ls.comparisons(scores), read_table(full, "floors")
    assert "generative_perplexity_matched" not in set(table["metric"])
    assert "not tested (no such runs or values)" in say.headline(table, "plain")[2]
    assert "There is no diversity that every run reaches" in say.diversity(scores, floors)[0]
    data = draw.score_data(scores, floors, PERPLEXITIES)
    figure = draw.judged_perplexity(data, read_setting(full))
    assert [ax.get_title() for ax in figure.axes][-1].startswith("cold")


def test_words_say_what_was_found(full, sparse):
    scores, floors = read_table(full, "scores"), read_table(full, "floors")
    table = ls.comparisons(scores)
    bound, mauve, perplexity = say.headline(table, "plain")
    assert bound.startswith("**Likelihood bound**: 1 of 5 block-wise configurations match")
    assert "the best is B = 2" in bound and "95 % interval" in bound and "3 seeds" in bound
    assert "4 are worse" in mauve and "×" in perplexity
    cells = say.match_table(table, "plain").set_index("blocks − end to end, or their ratio")
    assert cells.shape == (5, 3)
    two = cells.loc["B = 2, equal mass, overlap 0.1, frozen embedding"]
    assert all(cell.startswith("matches: ") and "95 % interval" in cell for cell in two)
    assert all(cell.startswith("worse: ") for cell in cells["likelihood bound"].iloc[1:])
    assert "2 of" not in bound and "not tested" in say.headline(table, "missing")[1]
    assert say.answers(table, "overlap", "plain") == [say.NOT_RUN]
    one = ls.comparisons(read_table(sparse, "scores"))
    assert "fewer than two seeds" in say.headline(one, "plain")[0]
    assert "one seed" in say.match_table(one, "plain")["MAUVE"].iloc[0]
    assert say.match_table(one, "plain", "tokens_seen")["MAUVE"].iloc[0].startswith("not tested")
    assert say.match_table(table.iloc[:0], "plain").empty
    assert MATCHED_NOTE in say.diversity(scores, floors)[0]
    assert "distinct-2 = 0.602" in say.diversity(scores, floors)[1]
    calibration = say.calibration(read_table(full, "bound_curve"), scores)
    assert len(calibration) == 5 and "chosen on validation text is σ₀ = 1 " in calibration[0]
    speed = say.speed(read_table(full, "generation"), "plain")
    assert speed[0].startswith("end to end") and "6 layer passes" in speed[0]
    assert "of end to end" in speed[1]


def test_one_network_has_one_speed_a_seed_however_long_it_was_trained(full):
    generation = read_table(full, "generation")
    found = ls.speeds(generation, "plain")
    assert len(found) == 3 * (len(FULL) - 1)
    plain = generation[(generation["sampling"] == "plain") & (generation["seed"] == 0)]
    whole = plain.loc[plain["method"] == "end_to_end", "tokens_per_second"]
    assert len(whole) == 2
    mine = found[(found["method"] == "end_to_end") & (found["seed"] == 0)]
    assert mine["tokens_per_second"].tolist() == pytest.approx([whole.mean()])
    figure, data = figure_and_data("throughput", full)
    assert set(data["n_seeds"]) == {3} and "over 3 seeds" in foot(figure)


def test_words_warn_where_real_text_was_scored_on_another_count(full):
    scores, floors = read_table(full, "scores"), read_table(full, "floors")
    setting = read_setting(full)
    assert "compare only roughly" not in say.setting(setting, scores, floors)[-1]
    fewer = floors.assign(samples=20)
    assert "scored on 20 samples" in say.setting(setting, scores, fewer)[-1]
    assert len(say.setting({}, scores, floors)) == len(say.setting(setting, scores, floors))
    costs = say.costs(scores)
    assert costs[0].startswith("End to end, equal layer evaluations: 3,686,400 layer evaluations")


def test_samples_are_shown_as_they_are(full):
    text = say.samples_table(read_table(full, "samples"), prompts=2)
    assert text.count("<tr>") == 3
    assert text.count("<th ") == 1 + len(FULL) + 2
    assert "for x in &lt;list&gt;" in text and "<list>" not in text
    assert " &amp; 0\n  y" in text and " &amp; 1" not in text  # first seed, white space kept
    assert (
        "B = 2, equal mass" in text
        and "iterations × 2" in text
        and "n-gram model" in text
        and " real text" in text
    )
    assert say.NOT_RUN in say.samples_table(pd.DataFrame())


# ---------------------------------------------------------------- notebook


def test_notebook_runs_and_writes_every_figure_with_its_data(full, tmp_path):
    parameters = {
        "preset": "synthetic",
        "tables": str(full),
        "published": str(ROOT / "workflow/config/published.csv"),
        "figures": str(tmp_path / "figures"),
        "summary_tables": str(tmp_path / "summary"),
    }
    papermill.execute_notebook(
        ROOT / "notebooks/language_quality.ipynb",
        tmp_path / "out.ipynb",
        parameters,
        progress_bar=False,
    )
    wanted = {f"{name}.{kind}" for name in draw.FIGURES for kind in ("svg", "png", "csv")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == wanted
    summary = {path.name for path in (tmp_path / "summary").iterdir()}
    assert summary == {"summary.csv", "comparisons.csv", "floors.csv"}
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    # A warning on the page would be one of ours.
    assert not [out for out in outputs if out["output_type"] in ("stream", "error")]
    comparisons = pd.read_csv(tmp_path / "summary/comparisons.csv")
    assert list(comparisons.columns) == ls.COLUMNS
