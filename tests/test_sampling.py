"""Samplers against the exact path of a Gaussian, where the ODE has a closed-form solution."""

import pytest
import torch

from diffusionblocks.noise import TruncatedLogNormal, edm_grid
from diffusionblocks.partition import partition
from diffusionblocks.randomness import initial_noise
from diffusionblocks.sampling import euler, guided, heun, routed

LAW = TruncatedLogNormal(sigma_min=0.02)
SIGMA_DATA = 0.5


def exact(z, sigma):
    """Posterior mean of y ~ N(0, σ_d²) given z = y + σ·ε."""
    return z * SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2)


def exact_end(z, start, end):
    """The probability-flow path: z scales with √(σ² + σ_d²)."""
    return z * ((end**2 + SIGMA_DATA**2) / (start**2 + SIGMA_DATA**2)) ** 0.5


def error(solver, steps):
    grid = edm_grid(LAW, steps)[:-1]
    z = 80 * torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = solver(exact, z, grid)
    truth = exact_end(z, grid[0].item(), grid[-1].item())
    return ((found - truth).norm() / truth.norm()).item()


def test_euler_converges_to_the_exact_path_at_first_order():
    errors = [error(euler, steps) for steps in (200, 400, 800)]
    assert errors[-1] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)


def test_heun_converges_at_second_order():
    errors = [error(heun, steps) for steps in (100, 200, 400)]
    assert errors[-1] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.25)


def test_one_euler_step_shrinks_noise():
    """The sign that the paper prints (its equations 3 and 4) would give 2z here, not 0.5·z."""
    z = torch.ones(1, 1)
    after = euler(lambda z, s: torch.zeros_like(z), z, torch.tensor([2.0, 1.0]))
    assert after.item() == pytest.approx(0.5)


def test_last_step_to_zero_returns_the_denoised_estimate():
    after = euler(lambda z, s: 7 + 0 * z, torch.ones(3, 1), torch.tensor([0.5, 0.0]))
    assert after.flatten().tolist() == [7, 7, 7]


@pytest.mark.parametrize(("solver", "calls"), [(euler, 10), (heun, 19)])
def test_denoiser_calls(solver, calls):
    seen = []
    solver(lambda z, s: seen.append(s) or z, torch.zeros(1, 1), edm_grid(LAW, 10))
    assert len(seen) == calls


def test_only_the_owner_runs_at_each_level():
    ranges = partition("equal_mass", LAW, 3)
    ran = []
    denoisers = [lambda z, s, b=b: ran.append((b, s)) or z for b in range(3)]
    euler(routed(denoisers, ranges), torch.zeros(1, 1), edm_grid(LAW, 30))
    assert [b for b, _ in ran] == sorted(b for b, _ in ran), "blocks run in the layers' order"
    assert {b for b, _ in ran} == {0, 1, 2}
    for b, sigma in ran:
        assert ranges[b].sigma_lo <= sigma * (1 + 1e-9) and sigma <= ranges[b].sigma_hi * (1 + 1e-9)


def test_guidance_extrapolates_from_the_unconditional_estimate():
    conditional, unconditional = (lambda z, s: z + 1), (lambda z, s: z)
    z = torch.zeros(2, 1)
    assert guided(conditional, unconditional, 1) is conditional
    assert guided(conditional, unconditional, 3)(z, 1.0).flatten().tolist() == [3, 3]
    assert guided(conditional, unconditional, 0)(z, 1.0).flatten().tolist() == [0, 0]


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    whole = initial_noise((1, 4, 4), 0, 10, seed=3)
    halves = torch.cat([initial_noise((1, 4, 4), 0, 5, 3), initial_noise((1, 4, 4), 5, 5, 3)])
    assert torch.equal(whole, halves)
    assert not torch.equal(whole, initial_noise((1, 4, 4), 0, 10, seed=4))
    assert whole.flatten().unique().numel() == whole.numel()
