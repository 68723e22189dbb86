"""Intervals, corrections and verdicts: closed forms, error rates on simulated truth, mends."""

import math

import numpy as np
import pandas as pd
import pytest

from diffusionblocks.errors import UserError
from diffusionblocks.report import read_setting, read_table, setting_number
from diffusionblocks.report import statistics as st

LAYERS = {1: "12", 2: "6-6", 3: "4-4-4"}


def score(seed, value, method="blockwise_independent", blocks=3, partition="equal_mass", **other):
    """One row of scores.csv; end to end when ``blocks`` is 1."""
    whole = blocks == 1
    row = {
        "run": f"{method}-{blocks}-{partition}-{seed}",
        "task": "images",
        "dataset": "digits",
        "method": "end_to_end" if whole else method,
        "blocks": blocks,
        "partition": "" if whole else partition,
        "overlap": 0.0,
        "layers_per_block": LAYERS[blocks],
        "seed": seed,
        "sampling": "plain",
        "solver": "euler",
        "steps": 50,
        "guidance": 1.0,
        "metric": "fid",
        "value": value,
        "better": "lower",
        "split": "test",
        "extractor": "digits_cnn",
        "samples": 600,
        "reference_samples": 597,
        "layer_evaluations": 1000,
    }
    return row | other


def table(*groups):
    """Scores of three seeds a group; a group is its values and the columns that name it."""
    rows = [score(seed, v, **named) for values, named in groups for seed, v in enumerate(values)]
    return pd.DataFrame(rows)


EQUAL = {"partition": "equal_mass"}
UNIFORM = {"partition": "uniform_log_sigma"}
WHOLE = {"blocks": 1}


def only(frame):
    assert len(frame) == 1
    return frame.iloc[0]


def test_t_interval_is_the_textbook_one():
    found = st.t_interval([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.302653 and the standard error is 1/√3.
    half = 4.302652729911275 / math.sqrt(3)
    assert (found.mean, found.n) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    # For two degrees of freedom P(|T| > t) = 1 − t/√(2 + t²), t = 2√3.
    assert found.p_value == pytest.approx(1 - math.sqrt(12 / 14))


def test_t_interval_covers_the_truth_95_times_in_100():
    draws = np.random.default_rng(0).normal(1.0, 3.0, (2000, 3))
    covered = [i.low <= 1.0 <= i.high for i in map(st.t_interval, draws)]
    assert 0.935 < np.mean(covered) < 0.965


@pytest.mark.parametrize(("values", "p_value"), [([0.0, 0.0], 1.0), ([2.0, 2.0], 0.0)])
def test_t_interval_without_spread(values, p_value):
    found = st.t_interval(values)
    assert found.low == found.high == values[0]
    assert found.p_value == p_value


def test_one_value_has_no_interval():
    found = st.t_interval([4.0])
    assert (found.mean, found.n) == (4.0, 1)
    assert math.isnan(found.low) and math.isnan(found.high) and math.isnan(found.p_value)


def test_holm_matches_its_definition():
    corrected = st.holm([0.01, 0.04, 0.03, 0.005])
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with_gap = st.holm([0.01, np.nan, 0.04])
    assert with_gap[[0, 2]] == pytest.approx([0.02, 0.04])
    assert math.isnan(with_gap[1])


def test_holm_keeps_the_rate_of_any_false_finding_at_five_per_cent():
    draws = np.random.default_rng(1).normal(size=(400, 5, 4))
    any_false = [
        st.holm([st.t_interval(d).p_value for d in family]).min() < 0.05 for family in draws
    ]
    uncorrected = [min(st.t_interval(d).p_value for d in family) < 0.05 for family in draws]
    assert np.mean(any_false) < 0.08
    assert np.mean(uncorrected) > 0.15


def test_pairing_by_seed_removes_what_seeds_share():
    # Seeds differ by tens, the methods by about one: only pairing can show it.
    scores = table(([10.0, 20.0, 40.0], UNIFORM), ([9.0, 19.1, 38.9], EQUAL))
    row = only(st.comparisons(scores))
    assert row["question"] == "partition"
    assert row["effect"] == pytest.approx(-1.0)
    assert row["high"] < 0
    assert (row["n_seeds"], row["reading"]) == (3, "better")
    assert row["baseline_mean"] == pytest.approx(70 / 3)


def test_an_edited_score_flips_the_reading():
    scores = table(([10.0, 11.0, 12.0], WHOLE), ([8.0, 9.1, 9.9], EQUAL))
    assert only(st.comparisons(scores))["reading"] == "better"
    scores.loc[scores["method"] != "end_to_end", "value"] = [12.0, 13.1, 13.9]
    assert only(st.comparisons(scores))["reading"] == "worse"
    scores.loc[scores["method"] != "end_to_end", "value"] = [9.0, 12.0, 12.1]
    assert only(st.comparisons(scores))["reading"] == st.NO_DIFFERENCE


@pytest.mark.parametrize(
    ("better", "expected"), [("lower", "better"), ("higher", "worse"), ("neutral", "lower")]
)
def test_reading_follows_the_direction_of_the_metric(better, expected):
    assert st.reading(st.Interval(-1, -2, -0.5, 3, 0.01), better) == expected


def test_false_verdicts_are_at_most_five_per_cent():
    rng = np.random.default_rng(2)
    intervals = [st.t_interval(rng.normal(size=3)) for _ in range(2000)]
    wrong = np.mean([st.reading(i, "lower") != st.NO_DIFFERENCE for i in intervals])
    assert 0.03 < wrong < 0.065


def test_fewer_than_two_paired_seeds_are_not_tested():
    scores = pd.DataFrame([score(0, 10.0, blocks=1), score(0, 9.0), score(1, 8.0)])
    row = only(st.comparisons(scores))
    assert (row["effect"], row["n_seeds"], row["reading"]) == (-1.0, 1, st.NOT_TESTED)
    assert math.isnan(row["low"]) and math.isnan(row["p_holm"])
    assert "one seed; not tested" in st.sentence(row.to_dict())


@pytest.mark.parametrize("unfair", [{"layer_evaluations": 500}, {"samples": 50}])
def test_runs_of_unequal_cost_or_sample_count_are_never_compared(unfair):
    scores = table(([10.0, 11.0, 12.0], WHOLE), ([1.0, 2.0, 3.0], EQUAL | unfair))
    row = only(st.comparisons(scores))
    assert (row["n_seeds"], row["reading"]) == (0, st.NOT_TESTED)
    assert "no seed ran both" in st.sentence(row.to_dict())


def test_scores_without_a_reference_set_are_compared():
    bare = {
        "metric": "label_accuracy",
        "better": "higher",
        "split": "",
        "reference_samples": np.nan,
    }
    scores = table(([0.5, 0.6, 0.7], WHOLE | bare), ([0.9, 1.0, 1.1], EQUAL | bare))
    assert only(st.comparisons(scores))["reading"] == "better"


def test_every_question_is_asked_of_the_configurations_that_answer_it():
    values = [1.0, 2.0, 3.0]
    scores = table(
        (values, WHOLE),
        (values, EQUAL),
        (values, UNIFORM),
        (values, {"partition": "uniform_sigma"}),
        (values, EQUAL | {"overlap": 0.05}),
        (values, EQUAL | {"overlap": 0.1}),
        (values, EQUAL | {"method": "blockwise_interleaved"}),
        (values, EQUAL | {"blocks": 2}),
    )
    found = st.comparisons(scores)
    assert found.groupby("question")["comparison"].apply(set).to_dict() == {
        "partition": {
            "equal mass − uniform ln σ (B = 3, overlap 0)",
            "equal mass − uniform σ (B = 3, overlap 0)",
        },
        "overlap": {
            "overlap 0.05 − overlap 0 (B = 3, equal mass)",
            "overlap 0.1 − overlap 0 (B = 3, equal mass)",
        },
        "method": {"interleaved − independent (B = 3, equal mass, overlap 0)"},
        # Of the three overlaps only the main grid's stands against end to end.
        "blocks": {
            "B = 2 − end to end (equal mass, overlap 0)",
            "B = 3 − end to end (equal mass, overlap 0)",
        },
    }
    assert set(found["reading"]) == {st.NO_DIFFERENCE}


def test_holm_families_are_one_question_and_one_score():
    base = [10.0, 11.0, 12.0]
    better = [8.0, 9.1, 9.9]
    groups = [(base, WHOLE), (better, EQUAL), (better, EQUAL | {"blocks": 2})]
    guided = [(v, named | {"sampling": "guided"}) for v, named in groups]
    found = st.comparisons(table(*groups, *guided))
    assert len(found) == 4
    # Equal p values in a family of two: both are doubled, and not by four.
    assert found["p_holm"].to_numpy() == pytest.approx(2 * found["p_value"].to_numpy())


def test_headline_names_the_cases_and_those_that_correction_takes_away():
    base = [10.0, 11.0, 12.0]
    scores = table(
        (base, WHOLE),
        ([9.0, 10.3, 10.9], EQUAL | {"blocks": 2}),
        ([9.0, 12.5, 11.0], EQUAL),
    )
    found = st.comparisons(scores)
    assert (found["p_value"] < 0.05).sum() == 1
    found.loc[found["case"] == "B = 2", "p_holm"] = 0.2
    line = st.headline(found, "blocks")
    assert line == (
        "(plain sampling) better: B = 2 (not after correction); no difference shown: B = 3."
    )
    assert st.headline(found, "overlap") == st.NOT_RUN
    assert st.verdicts(found, "overlap") == [st.NOT_RUN]


def test_sentence_states_effect_interval_and_correction():
    scores = table(([10.0, 11.0, 12.0], WHOLE), ([8.0, 9.1, 9.9], EQUAL))
    (line,) = st.verdicts(st.comparisons(scores), "blocks")
    assert line.startswith("B = 3 − end to end (equal mass, overlap 0): Fréchet distance, test")
    assert "−2 (95 % interval −2.25 to −1.75, 3 seeds): better; holds after Holm's" in line


def test_summary_has_one_row_a_configuration_and_score():
    scores = table(([1.0, 2.0, 3.0], WHOLE), ([4.0, 4.0, 4.0], EQUAL))
    found = st.summary(scores)
    assert found["mean"].tolist() == [2.0, 4.0]
    assert found["n_seeds"].tolist() == [3, 3]
    assert found["high"].iloc[0] == pytest.approx(2 + 4.302652729911275 / math.sqrt(3))


def test_grid_overlap_is_the_one_most_configurations_share():
    values = [1.0, 2.0, 3.0]
    alone = table((values, EQUAL), (values, EQUAL | {"overlap": 0.05}))
    assert st.grid_overlap(alone) == 0.0
    more = table(
        (values, EQUAL),
        (values, EQUAL | {"overlap": 0.05}),
        (values, UNIFORM | {"overlap": 0.05}),
    )
    assert st.grid_overlap(more) == 0.05
    uneven = more.assign(layers_per_block="3-6-3")
    assert st.main_grid(uneven).empty


def test_empty_cells_are_read_as_empty_names_and_layers_as_text(tmp_path):
    scores = table(([1.0, 2.0], WHOLE), ([1.0, np.nan], EQUAL))
    scores.to_csv(tmp_path / "scores.csv", index=False)
    found = read_table(tmp_path, "scores")
    assert found["partition"].tolist() == ["", "", "equal_mass", "equal_mass"]
    assert found["layers_per_block"].tolist() == ["12", "12", "4-4-4", "4-4-4"]
    assert math.isnan(found["value"].iloc[3])


def test_a_missing_or_empty_table_names_the_mend(tmp_path):
    with pytest.raises(UserError, match="scores.csv does not exist.*build the tables"):
        read_table(tmp_path, "scores")
    (tmp_path / "scores.csv").write_text("")
    with pytest.raises(UserError, match="not a whole table.*build it again"):
        read_table(tmp_path, "scores")


def test_settings_are_text_and_numbers_are_checked(tmp_path):
    (tmp_path / "setting.csv").write_text("key,value\nP_mean,-1.2\nnote,\n")
    setting = read_setting(tmp_path)
    assert setting == {"P_mean": "-1.2", "note": ""}
    assert setting_number(setting, "P_mean") == -1.2
    for key in ("note", "P_std"):
        with pytest.raises(UserError, match=f"for {key}; expected a number"):
            setting_number(setting, key)


def test_setting_sentences_are_computed_from_the_tables():
    scores = table(([1.0, 2.0, 3.0], WHOLE), ([1.0, 2.0, 3.0], EQUAL))
    setting = {"preset": "tiny", "layers": "12", "width": "32", "extractor_test_accuracy": "0.981"}
    text = " ".join(st.setting_sentences(setting | {"dataset": "digits"}, scores))
    assert "Preset tiny" in text
    assert "image × layer passes a run: 1,000" in text
    assert "DiT 12×32 on digits, digits_cnn features, 600 samples (it names 98.1%" in text
    assert "597 images of the test split" in text
    assert "plain: Euler, 50 steps, no guidance" in text
    assert "Seeds a configuration: 3." in text
    one = st.setting_sentences(setting, scores[scores["seed"] == 0])
    assert any("With one seed nothing is tested." in line for line in one)
