"""Measures of stability on curves whose spikes, tails and fate are known; learning-rate sweeps."""

import time

import numpy as np
import pandas as pd
import pytest
import sweeps
import torch

from diffusionblocks.parts import part_of
from diffusionblocks.report import RATE, read_table
from diffusionblocks.report import stability as sb
from diffusionblocks.report.measures import sources
from diffusionblocks.training.loop import train

FALLING = 1.5 * np.exp(-np.arange(200) / 50) + 0.5


def noisy(rng=None):
    rng = rng or np.random.default_rng(0)
    return FALLING * rng.lognormal(0, 0.03, len(FALLING))


def test_a_steady_curve_has_no_spikes():
    assert sb.spike_share(noisy()) == 0
    assert sb.spike_share(FALLING) == 0


@pytest.mark.parametrize("count", [1, 4])
def test_spikes_are_counted(count):
    loss = noisy()
    loss[30 : 30 + 40 * count : 40] *= 3
    assert sb.spike_share(loss) == pytest.approx(count / 180)


def test_scaling_a_loss_moves_no_spike():
    loss = noisy()
    loss[50] *= 4
    assert sb.spike_share(100 * loss) == sb.spike_share(loss) > 0


def test_a_loss_that_is_no_number_is_a_spike():
    loss = noisy()
    loss[30] = np.nan
    assert sb.spike_share(loss) == pytest.approx(1 / 180)


def test_the_tail_of_log_normal_norms_is_the_textbook_one():
    norms = np.random.default_rng(1).lognormal(2.0, 0.5, 200_000)
    # The 99th percentile of a log-normal lies exp(2.3263 s) above its median.
    assert sb.gradient_tail(norms) == pytest.approx(np.exp(2.3263 * 0.5), rel=0.02)


def test_norms_that_are_no_numbers_count_as_divergence_not_as_tails():
    norms = np.ones(100)
    norms[60] = np.inf
    assert sb.gradient_tail(norms) == 1
    assert np.isnan(sb.gradient_tail(np.full(100, np.nan)))


def test_the_warm_up_is_no_tail():
    norms = np.ones(100)
    norms[:10] = 1000
    assert sb.gradient_tail(norms) == 1


@pytest.mark.parametrize(
    ("loss", "expected"),
    [(FALLING, 0), (FALLING[::-1], 1), (np.append(FALLING[:-1], np.nan), 1), (np.ones(50), 1)],
)
def test_a_run_that_ends_no_better_than_it_began_diverged(loss, expected):
    assert sb.diverged(loss) == expected


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    _, _, results = sweeps.write_sweep(tmp_path_factory.mktemp("stability"))
    return results / "tables"


def test_every_run_gets_every_measure(tables):
    found = sources(tables, None)["stability"]
    wanted = {"loss_spike_share", "gradient_tail", "diverged", "seed_spread"}
    assert found.groupby("run")["metric"].agg(set).map(wanted.__eq__).all()
    assert found["value"].notna().all()


def test_the_spread_of_two_seeds_is_half_their_distance(tables):
    scores = read_table(tables, "scores", every_rate=True)
    two = scores[(scores["method"] == "end_to_end") & (scores["seed"] < 2)].copy()
    two["value"] = [10.0, 30.0]
    assert sb.seed_spread(two)["value"].tolist() == [0.5, 0.5]
    assert sb.seed_spread(two[:1]).empty


# ------------------------------------------------------------------------------ learning rates


def test_a_rate_of_one_changes_neither_name_nor_hash(tiny):
    plain = tiny().run("end_to_end-s0")
    assert "learning_rate_scale" not in plain.model_dump(mode="json")
    scaled = plain.model_copy(update={"learning_rate_scale": 3.0})
    assert (scaled.name, scaled.hash != plain.hash) == ("end_to_end-lr3-s0", True)
    assert type(plain).model_validate(scaled.model_dump(mode="json")) == scaled


def test_a_sweep_of_rates_names_its_runs(tiny):
    variant = "{method: blockwise_independent, blocks: 2, learning_rate_scale: [1, 0.3]}"
    names = [run.name for run in tiny(f"sweep.variants=[{variant}]").runs()]
    assert names == [
        "independent-B2-equal_mass-overlap0-s0",
        "independent-B2-equal_mass-overlap0-lr0.3-s0",
    ]


def test_runs_at_other_rates_are_left_out_unless_asked_for(tmp_path):
    frame = pd.DataFrame({"run": ["a", "b"], RATE: [1.0, 3.0]})
    frame.to_csv(tmp_path / "scores.csv", index=False)
    assert read_table(tmp_path, "scores")["run"].tolist() == ["a"]
    assert RATE not in read_table(tmp_path, "scores")
    assert read_table(tmp_path, "scores", every_rate=True)[RATE].tolist() == [1.0, 3.0]
    frame[["run"]].to_csv(tmp_path / "scores.csv", index=False)
    assert read_table(tmp_path, "scores", every_rate=True)[RATE].tolist() == [1.0, 1.0]


def test_the_rate_reaches_the_optimiser(tiny, task_of, tmp_path):
    plain = tiny().run("end_to_end-s0")
    scaled = plain.model_copy(update={"learning_rate_scale": 10.0})
    training = plain.training.model_copy(update={"learning_rate": 1.0e-2})
    same = plain.model_copy(update={"training": training})
    part, histories = part_of(plain, "block0"), []
    for i, run in enumerate((plain, scaled, same)):
        task = task_of(run)
        state = tmp_path / str(i)
        quiet = time.monotonic, lambda *a: None
        histories.append(train(run, part, task, task.ranges, state, *quiet).history)
    assert torch.equal(histories[1], histories[2])
    assert not torch.equal(histories[0], histories[1])
