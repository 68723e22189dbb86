"""The truncated log-normal against SciPy, and the grids against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from diffusionblocks.noise import TruncatedLogNormal, edm_grid, equal_mass_grid

laws = st.builds(
    lambda mean, std, lo, width: (mean, std, lo, lo * width),
    st.floats(-3, 2),
    st.floats(0.3, 3),
    st.floats(1e-3, 0.5),
    st.floats(2, 1e5),
)


def _law(parameters):
    try:
        return TruncatedLogNormal(*parameters)
    except ValueError as error:
        assert "log-normal density" in str(error)
        assume(False)


@given(laws, st.floats(0.001, 0.999))
def test_quantile_inverts_cdf(parameters, p):
    law = _law(parameters)
    assert law.cdf(law.quantile(p)).item() == pytest.approx(p, abs=1e-6)


@given(laws)
def test_cdf_matches_scipy(parameters):
    law = _law(parameters)
    a, b = ((np.log(s) - law.P_mean) / law.P_std for s in (law.sigma_min, law.sigma_max))
    expected = stats.truncnorm(a, b, loc=law.P_mean, scale=law.P_std)
    sigma = np.geomspace(law.sigma_min, law.sigma_max, 9)
    assert np.allclose(law.cdf(torch.tensor(sigma)), expected.cdf(np.log(sigma)), atol=1e-6)


@given(laws)
@settings(max_examples=30)
def test_density_integrates_to_one_and_vanishes_outside(parameters):
    law = _law(parameters)
    log_sigma = torch.linspace(
        np.log(law.sigma_min), np.log(law.sigma_max), 20_001, dtype=torch.float64
    )
    inside = log_sigma.exp().clamp(law.sigma_min, law.sigma_max)
    area = torch.trapezoid(law.density(inside), log_sigma)
    assert area.item() == pytest.approx(1, abs=2e-3)
    outside = torch.tensor([law.sigma_min / 2, law.sigma_max * 2])
    assert law.density(outside).tolist() == [0, 0]


def test_samples_stay_in_the_range_and_follow_the_density():
    law = TruncatedLogNormal()
    u = torch.rand(40_000, generator=torch.Generator().manual_seed(1))
    sigma = law.sample(u, 0.1, 3.0)
    assert sigma.dtype == torch.float32
    assert sigma.min() >= 0.1 and sigma.max() <= 3.0
    a, b = ((np.log(s) + 1.2) / 1.2 for s in (0.1, 3.0))
    law_scipy = stats.truncnorm(a, b, loc=-1.2, scale=1.2)
    assert stats.kstest(np.log(sigma.numpy()), law_scipy.cdf).pvalue > 1e-3


@pytest.mark.parametrize("grid", [edm_grid, equal_mass_grid])
@pytest.mark.parametrize("steps", [2, 3, 50])
def test_grids_fall_from_sigma_max_to_sigma_min_then_zero(grid, steps):
    law = TruncatedLogNormal()
    levels = grid(law, steps)
    assert levels.shape == (steps + 1,)
    assert levels[0].item() == pytest.approx(law.sigma_max)
    assert levels[-2].item() == pytest.approx(law.sigma_min)
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()


def test_edm_grid_is_even_in_sigma_to_one_over_rho():
    steps = edm_grid(TruncatedLogNormal(), 20)[:-1] ** (1 / 7)
    assert torch.allclose(steps.diff(), steps.diff()[0].expand(19))


def test_equal_mass_grid_is_even_in_probability():
    law = TruncatedLogNormal()
    p = law.cdf(equal_mass_grid(law, 20)[:-1])
    assert torch.allclose(p.diff(), torch.full((19,), -1 / 19, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize(
    "wrong", [(-1.2, 0.0, 0.002, 80), (-1.2, 1.2, 2, 1), (-1.2, 1.2, 0, 1), (-40, 0.5, 1, 2)]
)
def test_impossible_laws_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        TruncatedLogNormal(*wrong)
