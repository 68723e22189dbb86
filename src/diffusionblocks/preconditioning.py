"""EDM preconditioning: how a network F becomes a denoiser D (Karras et al. 2022, Table 1).

σ_data lives here and nowhere else, so the weighting of the loss and the scaling
of the network cannot drift apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _per_example(sigma: Tensor, z: Tensor) -> Tensor:
    """σ of shape [N] reshaped to [N, 1, …, 1] so that it scales z of shape [N, …]."""
    return sigma.reshape(-1, *([1] * (z.ndim - 1)))


@dataclass(frozen=True)
class Preconditioning:
    """The four coefficients and the loss weight as functions of σ.

    Args:
        sigma_data: standard deviation of the data per coordinate, in data units.
    """

    sigma_data: float = 0.5

    def c_skip(self, sigma: Tensor) -> Tensor:
        """σ_d² / (σ² + σ_d²)."""
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """σ·σ_d / √(σ² + σ_d²)."""
        return sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()

    def c_in(self, sigma: Tensor) -> Tensor:
        """1 / √(σ² + σ_d²)."""
        return 1 / (sigma**2 + self.sigma_data**2).sqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """ln(σ) / 4, the number that the network is conditioned on."""
        return sigma.log() / 4

    def weight(self, sigma: Tensor) -> Tensor:
        """w(σ) = (σ² + σ_d²) / (σ·σ_d)², so that w·c_out² = 1 at every σ."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def denoise(self, network: Callable[..., Tensor], z: Tensor, sigma: Tensor, *cond) -> Tensor:
        """D(z, σ, x) = c_skip·z + c_out·F(c_in·z, c_noise, x).

        Args:
            network: F, called as ``network(c_in * z, c_noise, *cond)``.
            z: noisy data [N, …].
            sigma: noise level of every example [N].
            cond: whatever else the network is conditioned on.

        Returns:
            The denoised estimate, shaped like z.
        """
        s = _per_example(sigma, z)
        f = network(self.c_in(s) * z, self.c_noise(sigma), *cond)
        return self.c_skip(s) * z + self.c_out(s) * f
