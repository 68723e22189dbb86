"""Llama-2-style decoders (Touvron et al. 2023): the plain next-token model and its denoising form.

Both are built of the same layers: RMSNorm, rotary positions, SwiGLU, no biases, PyTorch's fused
attention. The denoising form adds what a denoiser needs and nothing else: adaLN conditioning on
the noise level, and a second stream of noisy tokens beside the clean ones under one mask.
No layer knows about blocks.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .dit import NoiseEmbedding

NORM_EPS = 1e-6
ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class GPTShape:
    """Sizes of a decoder.

    Attributes:
        vocabulary: number of tokens.
        context_length: most positions of a sequence.
        width: of the residual stream, and of the embedding space.
        mlp_width: hidden width of SwiGLU; Llama's is 8/3 of the width, rounded up.
    """

    vocabulary: int
    context_length: int
    width: int
    heads: int
    mlp_width: int


def denoising_mask(length: int) -> Tensor:
    """Who sees whom among clean tokens 0 … L − 1 followed by their noisy copies.

    Clean i sees clean ≤ i; noisy i sees clean < i and itself (method notes, "Language models").

    Returns:
        bool [2L, 2L]; row: who looks, column: at whom.
    """
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    own = torch.eye(length, dtype=torch.bool)
    clean = torch.cat([causal, torch.zeros_like(causal)], dim=1)
    noisy = torch.cat([causal & ~own, own], dim=1)
    return torch.cat([clean, noisy])


def rotary_table(length: int, head_width: int) -> Tensor:
    """Cosines and sines of rotary positions (Su et al. 2021), [2, length, head_width / 2]."""
    exponent = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
    angle = torch.arange(length, dtype=torch.float32)[:, None] * ROTARY_BASE**-exponent
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs (i, i + head_width/2) of x [N, heads, T, head_width]; rotation [2, T, …]."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = rotation.to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class KeyValueCache:
    """Keys and values of the tokens that one layer has read.

    Args:
        shape: [N, heads, most positions, head_width].
    """

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype):
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def read(self, k: Tensor, v: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        """Everything read so far followed by k and v [N, heads, T, head_width].

        Args:
            keep: remember k and v; a noisy token is seen once, by itself only.
        """
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        if keep:
            self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions and one fused projection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: Tensor,
        mask: Tensor | None,
        cache: KeyValueCache | None,
        keep: bool,
    ) -> Tensor:
        """x [N, T, width] → shaped like x; see :meth:`Decoder.run` for the rest."""
        n, t, w = x.shape
        qkv = self.qkv(x).view(n, t, 3, self.heads, w // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [N, heads, T, head_width]
        q, k = rotate(q, rotation), rotate(k, rotation)
        first = cache is None or cache.length == 0
        if not first and t > 1:
            raise ValueError(f"{t} positions after cached ones; expected one at a time")
        if cache is not None:
            k, v = cache.read(k, v, keep)
        causal = mask is None and first and t > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(y.transpose(1, 2).reshape(n, t, w))


class SwiGLU(nn.Module):
    """down(SiLU(gate·x) ⊙ up·x) (Shazeer 2020), gate and up in one fused projection."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """x + attention(norm x), then x + SwiGLU(norm x); the denoising form modulates all four.

    Scales and gates are offsets from 1 that start at 0, so a fresh denoising layer computes
    what a plain one does. DiT starts its gates shut instead, which costs a short run its first
    updates.
    """

    def __init__(self, shape: GPTShape, conditioned: bool):
        super().__init__()
        width = shape.width
        self.attention_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.attention = Attention(width, shape.heads)
        self.mlp_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = SwiGLU(width, shape.mlp_width)
        self.adaln = nn.Linear(width, 6 * width) if conditioned else None

    def forward(
        self,
        x: Tensor,
        c: Tensor | None,
        rotation: Tensor,
        mask: Tensor | None,
        cache: KeyValueCache | None = None,
        keep: bool = True,
    ) -> Tensor:
        """x [N, streams, T, width], c [N or 1, streams, width] or None → shaped like x."""

        def attend(h: Tensor) -> Tensor:
            return self.attention(h.flatten(1, 2), rotation, mask, cache, keep).view_as(h)

        if self.adaln is None:
            x = x + attend(self.attention_norm(x))
            return x + self.mlp(self.mlp_norm(x))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
            self.adaln(c).unsqueeze(2).chunk(6, dim=3)
        )
        h = torch.addcmul(shift_a, self.attention_norm(x), 1 + scale_a)
        x = torch.addcmul(x, 1 + gate_a, attend(h))
        h = torch.addcmul(shift_m, self.mlp_norm(x), 1 + scale_m)
        return torch.addcmul(x, 1 + gate_m, self.mlp(h))


class Decoder(nn.Module):
    """What both forms share: token table, layers, final norm and head.

    Args:
        shape: sizes.
        layers: how many of the layers this instance builds.
        conditioned: whether layers are conditioned on a noise level.
        activation_checkpointing: recompute each layer in the backward pass.
    """

    def __init__(
        self,
        shape: GPTShape,
        layers: int,
        conditioned: bool,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        self.shape = shape
        self.activation_checkpointing = activation_checkpointing
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(DecoderLayer(shape, conditioned) for _ in range(layers))
        self.norm = nn.RMSNorm(shape.width, eps=NORM_EPS)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        rotation = rotary_table(shape.context_length, shape.width // shape.heads)
        self.register_buffer("rotation", rotation, persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Normal weights of deviation 0.02, as Llama's; adaLN starts without effect."""
        for name, parameter in self.named_parameters():
            if "norm" in name.rpartition(".")[0]:
                nn.init.ones_(parameter)
            elif "adaln" in name or name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02, generator=generator)

    def caches(self, n: int, dtype: torch.dtype = torch.float32) -> list[KeyValueCache]:
        """An empty cache for every layer, for n sequences."""
        s, device = self.shape, self.head.weight.device
        shape = (n, s.heads, s.context_length, s.width // s.heads)
        return [KeyValueCache(shape, device, dtype) for _ in self.layers]

    def run(
        self,
        x: Tensor,
        c: Tensor | None,
        rotation: Tensor,
        mask: Tensor | None = None,
        layers: range | None = None,
        caches: list[KeyValueCache] | None = None,
        keep: bool = True,
    ) -> Tensor:
        """The chosen layers.

        Args:
            x: [N, streams, T, width].
            c: conditioning [N or 1, streams, width]; None for the plain form.
            rotation: of every position of the flattened streams, [2, streams·T, head_width/2].
            mask: bool [streams·T, streams·T]; None means causal.
            layers: which of this instance's layers; all of them by default.
            caches: one for every layer; x then continues what they hold.
            keep: whether x enters the caches.
        """
        for i in range(len(self.layers)) if layers is None else layers:
            cache = None if caches is None else caches[i]
            if self.activation_checkpointing and self.training:
                x = checkpoint(
                    self.layers[i], x, c, rotation, mask,
                    use_reentrant=False, preserve_rng_state=False,
                )  # fmt: skip
            else:
                x = self.layers[i](x, c, rotation, mask, cache, keep)
        return x


class NextTokenGPT(Decoder):
    """The autoregressive transformer: the logits at position i are those of token i + 1."""

    def __init__(self, shape: GPTShape, layers: int, activation_checkpointing: bool = False):
        super().__init__(shape, layers, False, activation_checkpointing)

    def forward(
        self,
        tokens: Tensor,
        layers: range | None = None,
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        """Tokens int64 [N, T] → logits [N, T, vocabulary]; with caches, T further tokens."""
        start = caches[0].length if caches else 0
        rotation = self.rotation[:, start : start + tokens.shape[1]]
        x = self.embedding(tokens).unsqueeze(1)
        x = self.run(x, None, rotation, None, layers, caches).squeeze(1)
        return self.head(self.norm(x))


class DenoisingGPT(Decoder):
    """F(c_in·z, c_noise, clean past): every noisy token is denoised given the clean ones before it.

    A clean token does not depend on the noise level, so its keys and values can be cached: its
    conditioning is a vector of its own instead of an embedded σ.

    Args:
        trained_embedding: whether the token table gets gradients (``joint``).
    """

    def __init__(
        self,
        shape: GPTShape,
        layers: int,
        trained_embedding: bool,
        activation_checkpointing: bool = False,
    ):
        super().__init__(shape, layers, True, activation_checkpointing)
        self.embedding.weight.requires_grad_(trained_embedding)
        self.noise = NoiseEmbedding(shape.width)
        self.clean = nn.Parameter(torch.empty(shape.width))
        self.head_adaln = nn.Linear(shape.width, 2 * shape.width)
        mask = denoising_mask(shape.context_length)
        self.register_buffer("mask", mask, persistent=False)

    def table(self) -> Tensor:
        """The embedding space: unit vectors [vocabulary, width]."""
        return F.normalize(self.embedding.weight, dim=1)

    def forward(
        self, z: Tensor, c_noise: Tensor, clean: Tensor, layers: range | None = None
    ) -> Tensor:
        """Denoise all positions of whole sequences at once.

        Args:
            z: scaled noisy tokens [N, T, width].
            c_noise: [N].
            clean: scaled clean tokens [N, T, width].
            layers: which of this instance's layers to run; all of them by default.

        Returns:
            [N, T, width].
        """
        length, most = z.shape[1], self.shape.context_length
        mask = self.mask
        if length < most:
            mask = mask.view(2, most, 2, most)[:, :length, :, :length]
            mask = mask.reshape(2 * length, 2 * length)
        own = self.rotation[:, :length]
        c = self._conditioning(c_noise)
        x = self.run(torch.stack([clean, z], 1), c, torch.cat([own, own], 1), mask, layers)
        return self._output(x[:, 1], c[:, 1])

    def read(self, clean: Tensor, caches: list[KeyValueCache]) -> None:
        """Let the caches see further clean tokens, scaled, [N, T, width]."""
        start = caches[0].length
        rotation = self.rotation[:, start : start + clean.shape[1]]
        c = F.silu(self.clean).view(1, 1, -1)
        self.run(clean.unsqueeze(1), c, rotation, None, None, caches)

    def next(self, z: Tensor, c_noise: Tensor, caches: list[KeyValueCache]) -> Tensor:
        """F of the noisy token that follows the cached ones: z [N, width], c_noise [N] → like z."""
        start = caches[0].length
        c = self._conditioning(c_noise)[:, 1:]
        rotation = self.rotation[:, start : start + 1]
        x = self.run(z[:, None, None], c, rotation, None, None, caches, keep=False)
        return self._output(x[:, 0], c[:, 0]).squeeze(1)

    def logits(self, denoised: Tensor) -> Tensor:
        """Logits of denoised vectors in units of σ_data, [..., width] → [..., vocabulary]."""
        return self.head(denoised)

    def _conditioning(self, c_noise: Tensor) -> Tensor:
        """Of the clean and the noisy stream, [N, 2, width]."""
        noisy = self.noise(c_noise)
        return F.silu(torch.stack([self.clean.expand_as(noisy), noisy], 1))

    def _output(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.head_adaln(c).unsqueeze(1).chunk(2, dim=2)
        return torch.addcmul(shift, self.norm(x), 1 + scale)
