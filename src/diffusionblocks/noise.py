"""The noise level σ: its truncated log-normal density, and the grids that sampling walks down.

ln σ ~ N(P_mean, P_std²), restricted to [σ_min, σ_max] and renormalised
(method notes, equations 3 and 4). Everything here is in float64: at σ_max = 80 the
tail probability is 1e-6, and float32 would lose half of its digits.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

#: Below this probability the range lies so far out in a tail that quantiles lose their digits.
SMALLEST_MASS = 1e-9


@dataclass(frozen=True)
class TruncatedLogNormal:
    """p_noise(σ) on [sigma_min, sigma_max]; σ in data units, P_mean and P_std in units of ln σ."""

    P_mean: float = -1.2
    P_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self):
        if not self.P_std > 0:
            raise ValueError(f"P_std is {self.P_std}; expected a positive number")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min is {self.sigma_min} and sigma_max {self.sigma_max}; "
                "expected 0 < sigma_min < sigma_max"
            )
        if self._mass < SMALLEST_MASS:
            raise ValueError(
                f"the range {self.sigma_min} to {self.sigma_max} holds {self._mass:.1e} of the "
                f"log-normal density with P_mean {self.P_mean} and P_std {self.P_std}; "
                f"expected at least {SMALLEST_MASS:.0e}: move P_mean or widen the range"
            )

    def _phi(self, sigma: Tensor | float) -> Tensor:
        """Φ((ln σ − P_mean)/P_std), before truncation."""
        log_sigma = torch.as_tensor(sigma, dtype=torch.float64).log()
        return torch.special.ndtr((log_sigma - self.P_mean) / self.P_std)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """q_min and q_max of equation 4."""
        return float(self._phi(self.sigma_min)), float(self._phi(self.sigma_max))

    @property
    def _mass(self) -> float:
        return self._ends[1] - self._ends[0]

    def density(self, sigma: Tensor) -> Tensor:
        """p(ln σ): density per unit of ln σ of the truncated law, 0 outside the range."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        t = (sigma.log() - self.P_mean) / self.P_std
        p = torch.exp(-t * t / 2) / (self.P_std * math.sqrt(2 * math.pi)) / self._mass
        inside = (sigma >= self.sigma_min) & (sigma <= self.sigma_max)
        return torch.where(inside, p, torch.zeros_like(p))

    def cdf(self, sigma: Tensor | float) -> Tensor:
        """Probability that the truncated law puts below σ."""
        p = (self._phi(sigma) - self._ends[0]) / self._mass
        return p.clamp(0, 1)

    def quantile(self, p: Tensor | float) -> Tensor:
        """σ below which probability p lies; the inverse of :meth:`cdf` (equation 4)."""
        q = self._ends[0] + torch.as_tensor(p, dtype=torch.float64) * self._mass
        sigma = torch.exp(self.P_mean + self.P_std * torch.special.ndtri(q))
        return sigma.clamp(self.sigma_min, self.sigma_max)

    def sample(self, u: Tensor, sigma_lo: float, sigma_hi: float) -> Tensor:
        """p_noise restricted to [sigma_lo, sigma_hi] and renormalised (equation 3).

        Args:
            u: uniform numbers in [0, 1), any shape, any device; the only randomness.
            sigma_lo, sigma_hi: a block's training range.

        Returns:
            σ shaped like u, float32.
        """
        lo, hi = _share(self, sigma_lo), _share(self, sigma_hi)
        sigma = self.quantile(lo + u.double() * (hi - lo))
        return sigma.clamp(sigma_lo, sigma_hi).float()


@lru_cache(maxsize=1024)
def _share(noise: TruncatedLogNormal, sigma: float) -> float:
    """The law's cdf at one number, as a host number; training asks for the same ones every step."""
    return noise.cdf(sigma).item()


def edm_grid(noise: TruncatedLogNormal, steps: int, rho: float = 7.0) -> Tensor:
    """EDM's grid (Karras et al. 2022, equation 5): evenly spaced in σ^(1/ρ), then 0.

    Args:
        steps: T, the number of noise levels at which the denoiser is called.

    Returns:
        float64 [T + 1], strictly falling from σ_max to σ_min, then 0.
    """
    top, bottom = noise.sigma_max ** (1 / rho), noise.sigma_min ** (1 / rho)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.cat([(top + ramp * (bottom - top)) ** rho, torch.zeros(1, dtype=torch.float64)])


def equal_mass_grid(noise: TruncatedLogNormal, steps: int) -> Tensor:
    """Noise levels at equal steps of probability mass, then 0; shaped like :func:`edm_grid`."""
    levels = noise.quantile(torch.linspace(1, 0, steps, dtype=torch.float64))
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])


GRIDS = {"edm": edm_grid, "equal_mass": equal_mass_grid}
