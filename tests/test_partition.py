"""Partitions against their definitions; layers against the depth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffusionblocks.config import PARTITIONS
from diffusionblocks.layers import split_layers
from diffusionblocks.noise import TruncatedLogNormal
from diffusionblocks.partition import STRATEGIES, owner, partition

laws = st.builds(
    lambda mean, std, lo, width: TruncatedLogNormal(mean, std, lo, lo * width),
    st.floats(-2, 0),
    st.floats(0.8, 2.5),
    st.floats(1e-3, 0.05),
    st.floats(100, 1e5),
)
blocks = st.integers(1, 16)


@given(laws, blocks)
def test_equal_mass_ranges_hold_one_bth_each(law, B):
    for r in partition("equal_mass", law, B):
        mass = (law.cdf(r.sigma_hi) - law.cdf(r.sigma_lo)).item()
        assert mass == pytest.approx(1 / B, abs=1e-6)


@given(laws, blocks, st.sampled_from(PARTITIONS))
def test_ranges_tile_the_whole_range_from_high_to_low(law, B, strategy):
    ranges = partition(strategy, law, B)
    assert len(ranges) == B
    assert ranges[0].sigma_hi == law.sigma_max
    assert ranges[-1].sigma_lo == law.sigma_min
    for above, below in zip(ranges[:-1], ranges[1:], strict=True):
        assert above.sigma_lo == below.sigma_hi
        assert above.sigma_lo > below.sigma_lo


def test_reference_boundaries_of_three_equal_masses():
    """The boundaries of the paper's setting, against SciPy's truncated normal."""
    a, b = ((math.log(s) + 1.2) / 1.2 for s in (0.002, 80))
    expected = np.exp(stats.truncnorm(a, b, loc=-1.2, scale=1.2).ppf([2 / 3, 1 / 3]))
    ranges = partition("equal_mass", TruncatedLogNormal(), 3)
    assert [r.sigma_lo for r in ranges[:2]] == pytest.approx(expected, rel=1e-9)
    assert expected == pytest.approx([0.50504, 0.17963], abs=5e-6)


def test_uniform_strategies_are_uniform_in_their_own_variable():
    law = TruncatedLogNormal()
    width = [r.sigma_hi - r.sigma_lo for r in partition("uniform_sigma", law, 5)]
    assert width == pytest.approx([(80 - 0.002) / 5] * 5)
    ratio = [r.sigma_hi / r.sigma_lo for r in partition("uniform_log_sigma", law, 5)]
    assert ratio == pytest.approx([(80 / 0.002) ** (1 / 5)] * 5)


@given(laws, blocks, st.sampled_from(PARTITIONS), st.floats(0, 0.5))
def test_overlap_widens_by_alpha_and_is_clipped(law, B, strategy, gamma):
    for r in partition(strategy, law, B, gamma):
        alpha = (r.sigma_hi / r.sigma_lo) ** gamma
        assert r.train_lo == pytest.approx(max(law.sigma_min, r.sigma_lo / alpha))
        assert r.train_hi == pytest.approx(min(law.sigma_max, r.sigma_hi * alpha))
        assert law.sigma_min <= r.train_lo <= r.sigma_lo < r.sigma_hi <= r.train_hi


@given(laws, blocks, st.sampled_from(PARTITIONS), st.floats(0, 1))
def test_every_level_has_the_owner_whose_range_holds_it(law, B, strategy, place):
    ranges = partition(strategy, law, B)
    sigma = law.sigma_min * (law.sigma_max / law.sigma_min) ** place
    own = ranges[owner(ranges, sigma)]
    assert own.sigma_lo <= sigma <= own.sigma_hi * (1 + 1e-12)


def test_owner_outside_the_range_is_the_nearest_block():
    ranges = partition("equal_mass", TruncatedLogNormal(), 3)
    assert owner(ranges, 1e6) == 0
    assert owner(ranges, 1e-9) == 2


def test_negative_overlap_is_refused():
    with pytest.raises(ValueError, match="overlap"):
        partition("equal_mass", TruncatedLogNormal(), 2, -0.1)


def test_config_knows_every_strategy():
    assert set(PARTITIONS) == set(STRATEGIES)


@given(st.integers(1, 8), st.integers(1, 8))
def test_equal_layers_cover_the_depth(B, each):
    ranges = split_layers(B * each, B)
    assert [i for r in ranges for i in r] == list(range(B * each))
    assert {len(r) for r in ranges} == {each}


def test_uneven_layers_follow_the_papers_table_7():
    assert split_layers(12, 3, [3, 6, 3]) == [range(0, 3), range(3, 9), range(9, 12)]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((4, 6), "lower blocks"),
        ((12, 5), "do not divide"),
        ((12, 3, [3, 6]), "expected 3"),
        ((12, 3, [3, 6, 4]), "adds up to 13"),
        ((12, 3, [12, 0, 0]), "at least 1"),
    ],
)
def test_impossible_splits_are_refused(arguments, names):
    with pytest.raises(ValueError, match=names):
        split_layers(*arguments)


def test_mass_of_a_uniform_block_is_far_from_even():
    """Why the paper's argument matters: in ln σ the top third of the range holds almost nothing."""
    law = TruncatedLogNormal()
    top = partition("uniform_log_sigma", law, 3)[0]
    mass = (law.cdf(top.sigma_hi) - law.cdf(top.sigma_lo)).item()
    assert mass < 0.05
