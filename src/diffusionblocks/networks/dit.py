"""DiT with adaLN-Zero (Peebles & Xie 2023), conditioned on noise level and class.

One class serves every way to train: end to end it has L layers; an independent
block is a DiT of L/B layers with its own input, conditioning and output sides;
an interleaved run builds L layers once and runs a slice of them. No layer knows
about blocks.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

#: Spreads c_noise = ln(σ)/4, about −1.5 … 1.1, over the sinusoids, which suit inputs of order 100.
NOISE_SCALE = 100.0
FREQUENCIES = 256


@dataclass(frozen=True)
class DiTShape:
    """Sizes of a DiT. DiT-S/2 is 12 layers × 384, 6 heads, patch 2; DiT-L/2 24 × 1024, 16 heads."""

    image_size: int
    channels: int
    classes: int
    width: int
    heads: int
    patch: int
    mlp_ratio: float = 4.0


def sincos_positions(side: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions [side², width]: first half rows, second half columns."""
    omega = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * omega  # [side, width/4]
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # [side, width/2]
    rows = axis[:, None, :].expand(side, side, -1)
    columns = axis[None, :, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).reshape(side * side, width).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x·(1 + scale) + shift; x [N, tokens, width], shift and scale [N, 1, width]."""
    return torch.addcmul(shift, x, 1 + scale)


class NoiseEmbedding(nn.Module):
    """c_noise [N] → [N, width] by sinusoids and a two-layer MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        half = FREQUENCIES // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = NOISE_SCALE * c_noise.float()[:, None] * self.frequencies
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1))


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, w = x.shape
        qkv = self.qkv(x).view(n, t, 3, self.heads, w // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [N, heads, tokens, width/heads]
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, t, w))


class DiTLayer(nn.Module):
    """x + gate·attention(modulated x), then x + gate·MLP(modulated x); all gates start at 0."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.attention = Attention(width, heads)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
        )
        self.adaln = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x [N, tokens, width] and c = SiLU(conditioning) [N, width] → shaped like x."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
            self.adaln(c).unsqueeze(1).chunk(6, dim=2)
        )
        norm = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        x = torch.addcmul(x, gate_a, self.attention(modulate(norm, shift_a, scale_a)))
        norm = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return torch.addcmul(x, gate_m, self.mlp(modulate(norm, shift_m, scale_m)))


class DiT(nn.Module):
    """F(c_in·z, c_noise, label): an image-to-image transformer.

    Args:
        shape: sizes.
        layers: how many of the layers this instance builds.
        activation_checkpointing: recompute each layer in the backward pass.
    """

    def __init__(self, shape: DiTShape, layers: int, activation_checkpointing: bool = False):
        super().__init__()
        self.shape = shape
        self.activation_checkpointing = activation_checkpointing
        side = shape.image_size // shape.patch
        patch_values = shape.channels * shape.patch**2
        self.patches = nn.Linear(patch_values, shape.width)
        # One row more than there are classes: the last stands for "no label".
        self.labels = nn.Embedding(shape.classes + 1, shape.width)
        self.noise = NoiseEmbedding(shape.width)
        self.layers = nn.ModuleList(
            DiTLayer(shape.width, shape.heads, shape.mlp_ratio) for _ in range(layers)
        )
        self.head_adaln = nn.Linear(shape.width, 2 * shape.width)
        self.head = nn.Linear(shape.width, patch_values)
        positions = sincos_positions(side, shape.width)
        self.register_buffer("positions", positions, persistent=False)

    @property
    def no_label(self) -> int:
        """The label that means "unconditional"."""
        return self.shape.classes

    def initialise(self, generator: torch.Generator) -> None:
        """adaLN-Zero: every gate and the output start at 0, so F starts at 0 and D at c_skip·z."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.labels.weight, std=0.02, generator=generator)
        for module in (self.noise.mlp[0], self.noise.mlp[2]):
            nn.init.normal_(module.weight, std=0.02, generator=generator)
        for layer in self.layers:
            nn.init.zeros_(layer.adaln.weight)
        nn.init.zeros_(self.head_adaln.weight)
        nn.init.zeros_(self.head.weight)

    def patchify(self, z: Tensor) -> Tensor:
        """[N, C, H, W] → [N, (H/p)·(W/p), C·p²]."""
        n, c, h, w = z.shape
        p = self.shape.patch
        z = z.view(n, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
        return z.reshape(n, (h // p) * (w // p), c * p * p)

    def unpatchify(self, x: Tensor) -> Tensor:
        """[N, (H/p)·(W/p), C·p²] → [N, C, H, W]; the inverse of :meth:`patchify`."""
        n, p, c = x.shape[0], self.shape.patch, self.shape.channels
        side = self.shape.image_size // p
        x = x.view(n, side, side, c, p, p).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(n, c, side * p, side * p)

    def forward(
        self, z: Tensor, c_noise: Tensor, label: Tensor, layers: range | None = None
    ) -> Tensor:
        """Run the input side, the chosen layers and the output side.

        Args:
            z: scaled noisy images [N, C, H, W].
            c_noise: [N].
            label: class of every image, or ``no_label``, int64 [N].
            layers: which of this instance's layers to run; all of them by default.

        Returns:
            [N, C, H, W].
        """
        x = self.patches(self.patchify(z)) + self.positions
        c = F.silu(self.noise(c_noise) + self.labels(label))
        for i in range(len(self.layers)) if layers is None else layers:
            if self.activation_checkpointing and self.training:
                x = checkpoint(
                    self.layers[i], x, c, use_reentrant=False, preserve_rng_state=False
                )  # nothing in a layer is random, so no generator state needs keeping
            else:
                x = self.layers[i](x, c)
        shift, scale = self.head_adaln(c).unsqueeze(1).chunk(2, dim=2)
        x = modulate(F.layer_norm(x, x.shape[-1:], eps=1e-6), shift, scale)
        return self.unpatchify(self.head(x))
