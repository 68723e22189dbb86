"""Language modelling: next tokens end to end, or tokens denoised by blocks (paper, Table 4)."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import TextRun
from ..data.text import TextSplit, load_text, unigram
from ..devices import upload
from ..errors import UserError
from ..losses import next_token_loss, token_denoising_loss
from ..networks.gpt import Decoder, DenoisingGPT, GPTShape, NextTokenGPT
from ..preconditioning import Preconditioning
from ..randomness import batch_indices, stream
from ..tensors import load_tensors
from .images import noise_law, noise_ranges


class TokenBatch(NamedTuple):
    """One batch of the end-to-end model, on the device."""

    tokens: Tensor  # int64 [N, T]


class NoisyTokenBatch(NamedTuple):
    """One batch of one block, on the device."""

    tokens: Tensor  # int64 [N, T]
    sigma: Tensor  # [N]
    eps: Tensor  # [N, T, width]


def gpt_shape(run: TextRun, vocabulary: int) -> GPTShape:
    """Sizes of the decoder for a configuration and a vocabulary."""
    n = run.network
    mlp_width = n.mlp_width or -(-8 * n.width // 24) * 8
    return GPTShape(vocabulary, n.context_length, n.width, n.heads, mlp_width)


def build(run: TextRun, vocabulary: int, layers: int) -> Decoder:
    """An uninitialised network of that many layers, of the form that the run's method trains."""
    shape, recompute = gpt_shape(run, vocabulary), run.training.activation_checkpointing
    if run.method == "end_to_end":
        return NextTokenGPT(shape, layers, recompute)
    return DenoisingGPT(shape, layers, run.embedding == "joint", recompute)


def initial_table(run: TextRun, vocabulary: int) -> Tensor:
    """The embedding space that a run starts from: unit vectors [vocabulary, width].

    A function of the seed alone (or of a checkpoint), so that blocks trained in different jobs
    agree on what they pass on.

    Raises:
        UserError: the checkpoint's table does not fit.
    """
    shape = (vocabulary, run.network.width)
    if run.embedding_checkpoint is None:
        table = torch.randn(shape, generator=stream("cpu", run.seed, "embedding"))
        return F.normalize(table, dim=1)
    tensors = load_tensors(run.embedding_checkpoint)
    found = tuple(tensors["embedding.weight"].shape) if "embedding.weight" in tensors else None
    if found != shape:
        raise UserError(
            f"{run.embedding_checkpoint} has a token table of shape {found}, expected {shape}: "
            "its tokeniser or width differs; correct embedding_checkpoint"
        )
    return F.normalize(tensors["embedding.weight"].float(), dim=1)


def measured_sigma_data(table: Tensor, frequency: Tensor) -> float:
    """Standard deviation per coordinate of a text's embedded tokens.

    Args:
        table: [vocabulary, width].
        frequency: relative frequency of every token in the text.
    """
    table = table.double()
    mean = frequency @ table
    second = frequency @ table.square()
    return (second - mean.square()).mean().sqrt().item()


def token_logits(
    network: DenoisingGPT,
    forward,
    preconditioning: Preconditioning,
    z: Tensor,
    sigma: Tensor,
    clean: Tensor,
) -> Tensor:
    """Logits of noisy tokens: the head reads D = c_skip·z + c_out·F in units of σ_data.

    Args:
        network: whose head reads.
        forward: F, called as ``forward(c_in·z, c_noise, scaled clean tokens)``.
        z: noisy tokens [N, T, width], in units of the embedding space.
        sigma: [N].
        clean: clean tokens [N, T, width]; scaled as noisy ones at σ = 0 would be.

    Returns:
        [N, T, vocabulary].
    """
    sigma_data = preconditioning.sigma_data
    denoised = preconditioning.denoise(forward, z, sigma, clean / sigma_data)
    return network.logits(denoised / sigma_data)


class LanguageTask:
    """What the training loop needs of the task, for one run.

    Args:
        run: the run's configuration.
        data: folder of a prepared text.
        device: where batches are made.
    """

    def __init__(self, run: TextRun, data: Path, device: torch.device):
        self.run = run
        self.device = device
        self.noise = noise_law(run.noise)
        self.ranges = noise_ranges(run)
        self.train: TextSplit = load_text(data, run.split, run.network.context_length)
        self.vocabulary = self.train.vocabulary
        self.windows = self.train.count(run.network.context_length)
        self.table = None if run.embedding is None else initial_table(run, self.vocabulary)
        # The plain model has no noise; its preconditioning is never used.
        sigma_data = run.noise.sigma_data
        if self.table is not None:
            sigma_data = measured_sigma_data(self.table, unigram(self.train))
        self.preconditioning = Preconditioning(sigma_data)

    def description(self) -> dict[str, int | float | str]:
        """What a network trained on this text must know to be built and used again."""
        return {
            "vocabulary": self.vocabulary,
            "context_length": self.run.network.context_length,
            "tokenizer_sha256": self.train.tokenizer_digest,
            "sigma_data": self.preconditioning.sigma_data,
        }

    def network(self, layers: int, *key: int | str) -> Decoder:
        """A freshly initialised network of that many layers; weights depend on (seed, key)."""
        network = build(self.run, self.vocabulary, layers)
        network.initialise(stream("cpu", self.run.seed, "initial weights", *key))
        if self.table is not None:
            with torch.no_grad():
                network.embedding.weight.copy_(self.table)
        return network.to(self.device)

    def batch(self, block: int, iteration: int) -> TokenBatch | NoisyTokenBatch:
        """The batch of a block at one of its iterations, a function of (seed, block, iteration)."""
        seed, n, length = (
            self.run.seed,
            self.run.training.batch_size,
            self.run.network.context_length,
        )
        index = batch_indices(seed, block, iteration, n, self.windows)
        tokens = upload(self.train.windows(index, length), self.device)
        if self.table is None:
            return TokenBatch(tokens)
        generator = stream(self.device, seed, "batch", block, iteration)
        shape = (n, length, self.run.network.width)
        eps = torch.randn(shape, generator=generator, device=self.device)
        u = torch.rand(n, generator=generator, device=self.device)
        own = self.ranges[block]
        return NoisyTokenBatch(tokens, self.noise.sample(u, own.train_lo, own.train_hi), eps)

    def loss(self, network, batch: TokenBatch | NoisyTokenBatch, layers: range | None) -> Tensor:
        """Loss [N] in nats of a network, or of a slice of its layers."""
        low = self.run.training.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low):
            if self.table is None:
                return next_token_loss(network(batch.tokens, layers), batch.tokens)
            clean = F.embedding(batch.tokens, network.table())
            z = clean + batch.sigma[:, None, None] * batch.eps

            def forward(z: Tensor, c_noise: Tensor, clean: Tensor) -> Tensor:
                return network(z, c_noise, clean, layers)

            logits = token_logits(network, forward, self.preconditioning, z, batch.sigma, clean)
        return token_denoising_loss(logits, batch.tokens, batch.sigma, self.preconditioning)
