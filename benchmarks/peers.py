"""One training step of the suite beside the same step in plain PyTorch, as one would write it.

The plain side shares no code with the suite: a transformer out of ``torch.nn``, its loss,
backward, clipping, ``torch.optim.AdamW`` and a moving average of the weights.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from timing import median_ratio, row
from torch import Tensor, nn

from diffusionblocks.networks.dit import DiT, DiTLayer, DiTShape
from diffusionblocks.preconditioning import Preconditioning
from diffusionblocks.tasks.images import ImageBatch, ImageTask
from diffusionblocks.training.step import new_state, train_step

TARGET = 1.05
BETAS = (0.9, 0.999)


class PlainLayer(nn.Module):
    """A transformer layer whose norms are shifted, scaled and gated by a condition."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.ada = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens x [N, T, width] and condition c [N, width] → shaped like x."""
        n, t, w = x.shape
        s1, b1, g1, s2, b2, g2 = self.ada(c)[:, None].chunk(6, 2)
        h = F.layer_norm(x, (w,)) * (1 + s1) + b1
        q, k, v = self.qkv(h).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, w)
        x = x + g1 * self.out(h)
        h = F.layer_norm(x, (w,)) * (1 + s2) + b2
        return x + g2 * self.down(F.gelu(self.up(h), approximate="tanh"))


class PlainDiT(nn.Module):
    """A DiT on images that are cut into patches beforehand."""

    def __init__(self, width: int, heads: int, layers: int, tokens: int, values: int):
        super().__init__()
        self.embed = nn.Linear(values, width)
        self.positions = nn.Buffer(torch.zeros(tokens, width))
        self.labels = nn.Embedding(11, width)
        self.noise = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(PlainLayer(width, heads) for _ in range(layers))
        self.head_ada = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, values)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        """Patches [N, T, values], features of the noise level [N, 256], labels [N]."""
        x = self.embed(x) + self.positions
        c = F.silu(self.noise(noise) + self.labels(label))
        for layer in self.layers:
            x = layer(x, c)
        shift, scale = self.head_ada(c)[:, None].chunk(2, 2)
        return self.head(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift)


def plain_step(network: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Backward, clip, AdamW and moving average of a network, by hand."""
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, BETAS, weight_decay=0.0, fused=True)
    parameters = list(network.parameters())
    averages = [p.detach().clone() for p in parameters]

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 0.1)

    return step


def suite_step(network: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """The same by the suite."""
    state = new_state(network, BETAS, 0.0)
    return lambda: train_step(state, [loss], 1e-4, 0.9, 1.0)


def dit_pair(layers: int, batch: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """A step of DiT-S/2, or of one of its blocks: the suite's and the plain one."""
    network = DiT(DiTShape(32, 3, 10, 384, 6, 2), layers)
    network.initialise(torch.Generator().manual_seed(0))
    task = object.__new__(ImageTask)  # its loss needs neither data nor a run's other settings
    task.run = SimpleNamespace(training=SimpleNamespace(precision="fp32"))
    task.device, task.preconditioning = torch.device("cpu"), Preconditioning()
    y, eps = torch.randn(2, batch, 3, 32, 32)
    sigma, label = torch.rand(batch) + 0.1, torch.zeros(batch, dtype=torch.int64)
    loss = partial(task.loss, network.train(), ImageBatch(y, sigma, eps, label), None)

    plain = PlainDiT(384, 6, layers, 256, 12)
    patches, target = torch.randn(2, batch, 256, 12)
    features = torch.randn(batch, 256)

    def plain_loss() -> Tensor:
        return (plain(patches, features, label) - target).square().mean()

    return suite_step(network, loss), plain_step(plain, plain_loss)


def vit_pair(
    layers: int = 12, width: int = 128, heads: int = 4, tokens: int = 65, batch: int = 128
):
    """A step of layers at the sizes of the published ViT: the suite's and the plain one."""
    x, c = torch.randn(batch, tokens, width), torch.randn(batch, width)

    class Stack(nn.Module):
        def __init__(self, layer: Callable[[], nn.Module]):
            super().__init__()
            self.layers = nn.ModuleList(layer() for _ in range(layers))

        def forward(self) -> Tensor:
            """Mean square [N] of what the layers make of the tokens."""
            h = x
            for layer in self.layers:
                h = layer(h, c)
            return h.square().mean((1, 2))

    ours = Stack(lambda: DiTLayer(width, heads, 4.0))
    plain = Stack(lambda: PlainLayer(width, heads))
    return suite_step(ours, ours), plain_step(plain, lambda: plain().mean())


def peer_ratios(batch: int = 4, rounds: int = 9) -> list[dict]:
    """Time of the suite's step over the plain one's."""
    pairs = {
        "dit_s2_step_to_plain": lambda: dit_pair(12, batch),
        "dit_s2_block_step_to_plain": lambda: dit_pair(4, batch),
        "vit_sized_step_to_plain": lambda: vit_pair(),
    }
    return [
        row(name, median_ratio(*make(), rounds), "ratio", TARGET, "lower")
        for name, make in pairs.items()
    ]


if __name__ == "__main__":
    from bench import publish

    torch.set_num_threads(1)
    publish(peer_ratios(), Path("results/bench/peers.csv"))
