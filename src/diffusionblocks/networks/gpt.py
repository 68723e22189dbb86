"""Llama-2-style decoders (Touvron et al. 2023): the plain next-token model and its denoising form.

Both are built of the same layers: RMSNorm, rotary positions, SwiGLU, no biases, PyTorch's fused
attention. The denoising form adds what a denoiser needs and nothing else: adaLN conditioning on
the noise level, and a second stream of noisy tokens beside the clean ones under one mask.
No layer knows about blocks.
"""

from dataclasses import dataclass
from typing import NamedTuple

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
    """Whom a noisy token sees among clean tokens 0 … L − 1 followed by their noisy copies.

    Noisy i sees clean < i and itself; clean i sees clean ≤ i, which is the plain causal mask and
    needs no table (method notes, "Language models").

    Returns:
        bool [L, 2L]; row: who looks, column: at whom.
    """
    own = torch.eye(length, dtype=torch.bool)
    past = torch.ones(length, length, dtype=torch.bool).tril(-1)
    return torch.cat([past, own], dim=1)


def rotary_table(length: int, head_width: int) -> Tensor:
    """Cosines and sines of rotary positions (Su et al. 2021), [2, length, head_width / 2]."""
    exponent = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
    angle = torch.arange(length, dtype=torch.float32)[:, None] * ROTARY_BASE**-exponent
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs (i, i + head_width/2) of x [..., T, head_width]; rotation [2, T, …]."""
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
        self, x: Tensor, rotation: Tensor, cache: KeyValueCache | None = None, keep: bool = True
    ) -> Tensor:
        """Causal, of one stream: x [N, T, width] → shaped like x; see :meth:`Decoder.run`."""
        q, k, v = (self._heads(y) for y in self.qkv(x).chunk(3, dim=-1))
        q, k = rotate(q, rotation), rotate(k, rotation)
        first = cache is None or cache.length == 0
        if not first and x.shape[1] > 1:
            raise ValueError(f"{x.shape[1]} positions after cached ones; expected one at a time")
        if cache is not None:
            k, v = cache.read(k, v, keep)
        causal = first and x.shape[1] > 1
        return self._joined(F.scaled_dot_product_attention(q, k, v, is_causal=causal))

    def remember(self, x: Tensor, rotation: Tensor, cache: KeyValueCache) -> None:
        """Let a cache read x [N, T, width] of which nobody needs the answer."""
        k, v = self._keys_values(x)
        cache.read(rotate(k, rotation), v, keep=True)

    def both(self, x: Tensor, rotation: Tensor, mask: Tensor) -> Tensor:
        """Clean and noisy stream at once, x [N, 2, T, width] → shaped like x.

        Args:
            rotation: of the positions that both streams share, [2, T, head_width / 2].
            mask: of :func:`denoising_mask`, [T, 2T].
        """
        q, k, v = (self._heads(y) for y in self.qkv(x).chunk(3, dim=-1))
        q, k = rotate(q, rotation), rotate(k, rotation)
        attend = F.scaled_dot_product_attention
        clean = attend(q[:, :, 0], k[:, :, 0], v[:, :, 0], is_causal=True)
        noisy = attend(q[:, :, 1], k.flatten(2, 3), v.flatten(2, 3), attn_mask=mask)
        return torch.stack([self._joined(clean), self._joined(noisy)], 1)

    def noisy(self, x: Tensor, rotation: Tensor, mask: Tensor) -> Tensor:
        """The noisy half of :meth:`both`, [N, 1, T, width], without the work of the clean one."""
        q = self._heads(F.linear(x[:, 1], self.qkv.weight[: x.shape[-1]]))
        k, v = self._keys_values(x)
        k, v = rotate(k, rotation).flatten(2, 3), v.flatten(2, 3)
        y = F.scaled_dot_product_attention(rotate(q, rotation), k, v, attn_mask=mask)
        return self._joined(y).unsqueeze(1)

    def _heads(self, x: Tensor) -> Tensor:
        """[N, ..., T, width] → [N, heads, ..., T, head_width]."""
        return x.unflatten(-1, (self.heads, -1)).movedim(-2, 1)

    def _keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = F.linear(x, self.qkv.weight[x.shape[-1] :]).chunk(2, dim=-1)
        return self._heads(k), self._heads(v)

    def _joined(self, y: Tensor) -> Tensor:
        """Answers of the heads [N, heads, T, head_width] → [N, T, width]."""
        return self.out(y.transpose(1, 2).flatten(2))


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
        last: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """x [N, T, width] → shaped like x; see :meth:`Decoder.run`.

        In the denoising form x is [N, streams, T, width] and c [N or 1, streams, width]; with
        ``last`` two streams become one.
        """
        if self.adaln is None:
            x = x + self.attention(self.attention_norm(x), rotation, cache)
            return x + self.mlp(self.mlp_norm(x))
        return self.modulated(x, self.modulation(c), rotation, mask, last)

    def modulated(
        self,
        x: Tensor,
        m: Tensor,
        rotation: Tensor,
        mask: Tensor | None = None,
        last: bool = False,
        cache: KeyValueCache | None = None,
        keep: bool = True,
    ) -> Tensor:
        """The denoising form, given what :meth:`modulation` makes of its conditioning.

        Args:
            keep: whether x enters the cache.
        """
        h = self._attention_input(x, m)
        if mask is None:
            y = self.attention(h.squeeze(1), rotation, cache, keep).unsqueeze(1)
        elif last:
            y = self.attention.noisy(h, rotation, mask)
            x, m = x[:, 1:], m[:, 1:]
        else:
            y = self.attention.both(h, rotation, mask)
        gate_a, shift_m, scale_m, gate_m = m.chunk(6, dim=-1)[2:]
        x = torch.addcmul(x, 1 + gate_a, y)
        h = torch.addcmul(shift_m, self.mlp_norm(x), 1 + scale_m)
        return torch.addcmul(x, 1 + gate_m, self.mlp(h))

    def remember(self, x: Tensor, m: Tensor, rotation: Tensor, cache: KeyValueCache) -> None:
        """Let a cache read x [N, 1, T, width] of which nobody needs the answer."""
        h = self._attention_input(x, m)
        self.attention.remember(h.squeeze(1), rotation, cache)

    def modulation(self, c: Tensor) -> Tensor:
        """Shift, scale and gate of attention, then of SwiGLU, [N or 1, streams, 1, 6·width]."""
        return self.adaln(c).unsqueeze(2)

    def _attention_input(self, x: Tensor, m: Tensor) -> Tensor:
        shift, scale = m.chunk(6, dim=-1)[:2]
        return torch.addcmul(shift, self.attention_norm(x), 1 + scale)


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
    ) -> Tensor:
        """The chosen layers.

        The last of them answers for the noisy stream only: nothing reads its clean answers.

        Args:
            x: [N, T, width] of the plain form, [N, streams, T, width] of the denoising one.
            c: conditioning [N or 1, streams, width]; None for the plain form.
            rotation: of the positions of one stream, [2, T, head_width/2].
            mask: bool [T, 2T] of :func:`denoising_mask` where x has two streams, else None.
            layers: which of this instance's layers; all of them by default.
            caches: one for every layer of the plain form; x then continues what they hold.

        Returns:
            Shaped like x, but of two streams the noisy one only, [N, 1, T, width].
        """
        chosen = range(len(self.layers)) if layers is None else layers
        for i in chosen:
            last = i == chosen[-1]
            cache = None if caches is None else caches[i]
            if self.activation_checkpointing and self.training:
                x = checkpoint(
                    self.layers[i], x, c, rotation, mask, last,
                    use_reentrant=False, preserve_rng_state=False,
                )  # fmt: skip
            else:
                x = self.layers[i](x, c, rotation, mask, last, cache)
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
        x = self.run(self.embedding(tokens), None, rotation, None, layers, caches)
        return self.head(self.norm(x))


class Modulation(NamedTuple):
    """Shifts, scales and gates at one noise level.

    Attributes:
        layers: of every layer, [N or 1, 1, 1, 6·width].
        head: [N or 1, 2·width].
    """

    layers: list[Tensor]
    head: Tensor


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
            mask = mask.view(most, 2, most)[:length, :, :length].flatten(1)
        c = self._conditioning(c_noise)
        rotation = self.rotation[:, :length]
        x = self.run(torch.stack([clean, z], 1), c, rotation, mask, layers)
        return self._output(x[:, 0], self.head_adaln(c[:, 1]))

    def modulation(self, c_noise: Tensor | None) -> Modulation:
        """What a noise level [N], or for None a clean token, makes of every layer and of the head.

        It is the same for every token, so generation asks for it once a noise level.
        """
        if c_noise is None:
            c = F.silu(self.clean).view(1, 1, -1)
        else:
            c = self._conditioning(c_noise)[:, 1:]
        return Modulation([layer.modulation(c) for layer in self.layers], self.head_adaln(c[:, 0]))

    def read(self, clean: Tensor, m: Modulation, caches: list[KeyValueCache]) -> None:
        """Let the caches see further clean tokens, scaled, [N, T, width]."""
        start = caches[0].length
        rotation = self.rotation[:, start : start + clean.shape[1]]
        x = clean.unsqueeze(1)
        *others, (layer, own, cache) = zip(self.layers, m.layers, caches, strict=True)
        for before, modulation, filled in others:
            x = before.modulated(x, modulation, rotation, cache=filled)
        layer.remember(x, own, rotation, cache)

    def next(self, z: Tensor, m: Modulation, caches: list[KeyValueCache]) -> Tensor:
        """F of the noisy token that follows the cached ones: z [N, width] → like z."""
        start = caches[0].length
        rotation = self.rotation[:, start : start + 1]
        x = z[:, None, None]
        for layer, own, cache in zip(self.layers, m.layers, caches, strict=True):
            x = layer.modulated(x, own, rotation, cache=cache, keep=False)
        return self._output(x[:, 0], m.head).squeeze(1)

    def logits(self, denoised: Tensor) -> Tensor:
        """Logits of denoised vectors in units of σ_data, [..., width] → [..., vocabulary]."""
        return self.head(denoised)

    def _conditioning(self, c_noise: Tensor) -> Tensor:
        """Of the clean and the noisy stream, [N, 2, width]."""
        noisy = self.noise(c_noise)
        return F.silu(torch.stack([self.clean.expand_as(noisy), noisy], 1))

    def _output(self, x: Tensor, m: Tensor) -> Tensor:
        shift, scale = m.unsqueeze(1).chunk(2, dim=2)
        return torch.addcmul(shift, self.norm(x), 1 + scale)
