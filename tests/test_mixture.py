"""Blocks against the exact optimum: a mixture of Gaussians, whose denoiser has a closed form.

For y ~ Σ_k π_k N(μ_k, s²I) and z = y + σε the posterior mean is
D*(z, σ) = Σ_k r_k(z)·(μ_k·σ² + z·s²)/(σ² + s²) with r_k ∝ π_k·N(z; μ_k, (σ² + s²)I).
The excess of a denoiser's loss over the optimum is w(σ)·E‖D − D*‖².
"""

import time

import pytest
import torch

from diffusionblocks.losses import denoising_loss
from diffusionblocks.networks.dit import DiT, DiTShape
from diffusionblocks.partition import equal_mass, owner
from diffusionblocks.parts import part_of
from diffusionblocks.randomness import stream
from diffusionblocks.tasks.images import ImageBatch, ImageTask, noise_law, noise_ranges
from diffusionblocks.training.loop import train

SHAPE = DiTShape(image_size=4, channels=1, classes=1, width=32, heads=2, patch=2)
SPREAD = 0.1
CENTRES = torch.tensor([[1.0, 0.3], [-0.6, 0.8], [0.1, -0.9]]).repeat_interleave(8, 1) * 0.6


def draw(n, generator):
    which = torch.randint(len(CENTRES), (n,), generator=generator)
    y = CENTRES[which] + SPREAD * torch.randn(n, 16, generator=generator)
    return y.view(n, 1, 4, 4)


def optimum(z, sigma):
    """D*(z, σ); z [N, 1, 4, 4], sigma [N]."""
    flat, variance = z.flatten(1).double(), (sigma.double() ** 2)[:, None]
    total = variance + SPREAD**2
    centres = CENTRES.double()
    distance = (flat[:, None, :] - centres).square().sum(2)
    responsibility = torch.softmax(-distance / (2 * total), dim=1)
    centre = responsibility @ centres
    return ((centre * variance + flat * SPREAD**2) / total).view(z.shape)


class MixtureTask(ImageTask):
    """The image task with the mixture in the place of images."""

    def __init__(self, run):
        self.run, self.device = run, torch.device("cpu")
        self.noise, self.ranges = noise_law(run.noise), noise_ranges(run)
        from diffusionblocks.preconditioning import Preconditioning

        self.preconditioning = Preconditioning(run.noise.sigma_data)

    def network(self, layers, *key):
        network = DiT(SHAPE, layers)
        network.initialise(stream("cpu", self.run.seed, "w", *key))
        return network

    def batch(self, block, iteration):
        n = self.run.training.batch_size
        generator = stream("cpu", self.run.seed, block, iteration)
        y = draw(n, generator)
        own = self.ranges[block]
        sigma = self.noise.sample(torch.rand(n, generator=generator), own.train_lo, own.train_hi)
        eps = torch.randn(y.shape, generator=generator)
        return ImageBatch(y, sigma, eps, torch.zeros(n, dtype=torch.long))


@torch.no_grad()
def excess_per_band(task, networks, bands=4, n=512):
    """w·E‖D − D*‖² per coordinate in bands of equal mass, every σ sent to its owner."""
    edges = equal_mass(task.noise, bands).tolist()
    out = []
    for band in range(bands):
        generator = stream("cpu", "held out", band)
        y = draw(n, generator)
        u = torch.rand(n, generator=generator)
        sigma = task.noise.sample(u, edges[band], edges[band + 1])
        z = y + sigma.view(-1, 1, 1, 1) * torch.randn(y.shape, generator=generator)
        best = optimum(z, sigma)
        found = torch.empty_like(z)
        owners = torch.tensor([owner(task.ranges, s) for s in sigma.tolist()])
        for b, network in enumerate(networks):
            mine = owners == b
            label = torch.zeros(int(mine.sum()), dtype=torch.long)
            found[mine] = task.preconditioning.denoise(network, z[mine], sigma[mine], label)
        square = (found - best).square().flatten(1).mean(1)
        out.append((task.preconditioning.weight(sigma) * square).mean().item())
    return torch.tensor(out)


def trained_blocks(run, folder):
    task = MixtureTask(run)
    networks = []
    for name in run.parts:
        part = part_of(run, name)
        done = train(run, part, task, task.ranges, folder / name, time.monotonic, lambda *a: None)
        network = task.network(part.depth, name)
        network.load_state_dict(done.ema)
        networks.append(network.eval())
    return task, networks


@pytest.mark.parametrize("method", ["end_to_end", "independent-B2"])
def test_excess_over_the_optimum_falls_in_every_band(tiny, tmp_path, method):
    excess = []
    for iterations in (10, 60, 300):
        preset = tiny(
            f"training.iterations={iterations}",
            "training.batch_size=32",
            "training.learning_rate=0.004",
            "training.schedule=cosine",
            "network.layers=4",
            "sweep.variants=[{method: end_to_end}, {method: blockwise_independent, blocks: 2}]",
        )
        run = next(r for r in preset.runs() if r.name.startswith(method))
        task, networks = trained_blocks(run, tmp_path / str(iterations))
        excess.append(excess_per_band(task, networks))
    print(f"\n{method}: excess loss per band, low to high noise, after 10, 60, 300 iterations")
    print(torch.stack(excess))
    assert (excess[1] < excess[0]).all()
    assert (excess[2] < excess[1]).all()
    assert (excess[2] < 0.5 * excess[0]).all()


def test_the_optimum_is_optimal():
    """No scaled or shifted version of D* does better, at any noise level."""
    generator = torch.Generator().manual_seed(0)
    y = draw(20_000, generator)
    for level in (0.05, 0.3, 2.0):
        sigma = torch.full((len(y),), level)
        z = y + level * torch.randn(y.shape, generator=generator)
        best = optimum(z, sigma)
        loss = (best - y).square().mean()
        for other in (best * 1.05, best * 0.95, best + 0.02, 0.9 * best + 0.1 * z):
            assert (other - y).square().mean() > loss


def test_denoising_loss_is_the_weighted_square_error():
    """Against the definition, with a network that returns what would make D exact."""
    from diffusionblocks.preconditioning import Preconditioning

    p = Preconditioning(0.5)
    y, eps = torch.randn(2, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.01, 0.1, 0.5, 2.0, 40.0])
    s = sigma.view(-1, 1, 1, 1)
    perfect = (y - p.c_skip(s) * (y + s * eps)) / p.c_out(s)
    assert denoising_loss(lambda x, c: perfect, p, y, sigma, eps).max() < 1e-6
    # Off by 1 in F is off by c_out in D, and w·c_out² = 1.
    off = denoising_loss(lambda x, c: perfect + 1, p, y, sigma, eps)
    assert torch.allclose(off, torch.ones(5), rtol=1e-3)
