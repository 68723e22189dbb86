"""EDM preconditioning against its defining identities."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusionblocks.preconditioning import Preconditioning

SIGMA = torch.logspace(-2.7, 1.9, 200, dtype=torch.float64)


@given(st.floats(0.01, 10))
def test_weight_undoes_the_output_scale(sigma_data):
    p = Preconditioning(sigma_data)
    assert torch.allclose(p.weight(SIGMA) * p.c_out(SIGMA) ** 2, torch.ones_like(SIGMA))


def test_network_input_has_unit_variance():
    p = Preconditioning(0.5)
    variance_of_z = SIGMA**2 + 0.5**2
    assert torch.allclose(p.c_in(SIGMA) ** 2 * variance_of_z, torch.ones_like(SIGMA))


def test_zero_network_is_the_exact_denoiser_of_a_gaussian():
    """For y ~ N(0, σ_d²) the posterior mean is z·σ_d²/(σ_d² + σ²): what F = 0 gives."""
    sigma_data = 0.7
    z = torch.randn(64, 3, dtype=torch.float64)
    sigma = SIGMA[:64]
    denoised = Preconditioning(sigma_data).denoise(lambda x, c: torch.zeros_like(x), z, sigma)
    expected = z * (sigma_data**2 / (sigma_data**2 + sigma**2))[:, None]
    assert torch.allclose(denoised, expected)


def test_target_of_the_network_has_unit_variance():
    """F's target (y − c_skip·z)/c_out has variance 1, which is how c_skip and c_out are chosen."""
    p, sigma_data = Preconditioning(0.5), 0.5
    generator = torch.Generator().manual_seed(0)
    y = sigma_data * torch.randn(400_000, generator=generator, dtype=torch.float64)
    for sigma in (0.01, 0.5, 20.0):
        z = y + sigma * torch.randn(len(y), generator=generator, dtype=torch.float64)
        s = torch.tensor(sigma, dtype=torch.float64)
        target = (y - p.c_skip(s) * z) / p.c_out(s)
        assert target.var().item() == pytest.approx(1, abs=0.01)


def test_denoise_passes_ln_sigma_over_four():
    seen = {}

    def network(x, c_noise):
        seen["c_noise"] = c_noise
        return x

    sigma = torch.tensor([0.002, 80.0])
    Preconditioning().denoise(network, torch.zeros(2, 1), sigma)
    assert torch.allclose(seen["c_noise"], sigma.log() / 4)
