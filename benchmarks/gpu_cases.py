"""The networks that bench_gpu times: their runs, data of random values, and the least that trains.

Speed does not depend on what the data hold, but everything is read from files in the layout of
the suite's own, by the suite's own tasks.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusionblocks.config import DataConfig, GPTConfig, RunConfig, validated
from diffusionblocks.data.images import LOADERS, Decoded, prepare_images
from diffusionblocks.data.latents import CHANNELS, SIDE
from diffusionblocks.data.text import SPLITS
from diffusionblocks.files import sha256, write_json, write_text
from diffusionblocks.memory.point import Images, from_sizes
from diffusionblocks.memory.text_point import TextPoint, text_point
from diffusionblocks.paper.cost import step_flops
from diffusionblocks.tasks import TASKS

Step = Callable[[], None]
#: Where these would come from; nothing is read there.
NOWHERE = {
    "cifar10": {"path": "."},
    "imagenet256": {"path": ".", "autoencoder": "./none", "scored_images": 1},
}


def training_of(options: argparse.Namespace, batch: int, checkpointing: bool) -> dict:
    """How every timed step trains."""
    return {
        "iterations": 10**6,
        "batch_size": options.batch or batch,
        "learning_rate": 1e-4,
        "ema_halflife_samples": 500_000,
        "precision": options.precision,
        "compile": options.compile != "off",
        "compile_mode": "default" if options.compile == "off" else options.compile,
        "activation_checkpointing": checkpointing,
    }


def loop_by_hand(run: RunConfig, network, loss: Callable[..., Tensor]) -> Step:
    """The least that trains a network: no average, no clipping, no exact order of data.

    Compiled as the suite's step is, so that the two differ in the loop alone.

    Args:
        loss: of what it calls in the network's place, under autocast, in full precision.
    """
    optimizer = torch.optim.AdamW(network.parameters(), run.training.learning_rate, fused=True)
    forward = network
    if run.training.compile:
        forward = torch.compile(network, mode=run.training.compile_mode, dynamic=False)

    def step() -> None:
        optimizer.zero_grad()
        loss(forward).backward()
        optimizer.step()

    return step


@dataclass(frozen=True)
class ImageCase:
    """An image network on a data set.

    Attributes:
        target: share of the GPU's arithmetic that its step end to end should reach.
        checkpointing: whether end to end recomputes activations.
        count: images in the set.
        blocks: into how many it is cut.
        most_time: what all its blocks should take at most, end to end being 1.
    """

    name: str
    network: dict
    data: str
    batch: int
    target: float
    checkpointing: bool = False
    count: int = 8192
    blocks: int = 3
    most_time: float = 1.08
    unit: str = "images"

    @property
    def images(self) -> Images:
        """Sizes of one example."""
        return Images(32, 3, 10) if self.data == "cifar10" else Images(SIDE, CHANNELS, 1000)

    def run(self, blocks: int, options: argparse.Namespace) -> RunConfig:
        """The run whose steps are timed."""
        settings = {
            "task": "images",
            "data": {"name": self.data} | NOWHERE[self.data],
            "network": self.network,
            "noise": {},
            "training": training_of(options, self.batch, self.checkpointing and blocks == 1),
            "compute": {"device": options.device},
            "method": "end_to_end" if blocks == 1 else "blockwise_independent",
            "blocks": blocks,
            "partition": None if blocks == 1 else "equal_mass",
            "overlap": 0.0,
            "layers_per_block": None,
            "seed": 0,
        }
        return validated(RunConfig, settings, "bench_gpu")

    def write(self, folder: Path) -> None:
        """A prepared data set."""
        (_write_pixels if self.data == "cifar10" else _write_latents)(folder, self.count)

    def examples(self, run: RunConfig) -> int:
        """Images of a step."""
        return run.training.batch_size

    def flops(self, run: RunConfig) -> int:
        """Operations of a step that recomputes nothing, by PyTorch's counter."""
        sizes = run.network.model_dump() | {"layers": len(run.layer_ranges()[0])}
        point = from_sizes("bench", sizes, self.images, batch_size=1)
        return step_flops(point) * run.training.batch_size

    def plain_step(self, run: RunConfig, data: Path, device: torch.device) -> Step:
        """See :func:`loop_by_hand`."""
        task = TASKS["images"](run, data, device)
        network = task.network(run.network.layers, "plain").train()
        own = torch.Generator(device).manual_seed(0)
        everything = torch.arange(task.source.count)
        y, label = (t.to(device) for t in task.source.examples(everything, own))
        n, low = run.training.batch_size, run.training.precision == "bf16"

        def loss(forward) -> Tensor:
            index = torch.randint(len(y), (n,), device=device)
            clean, sigma = y[index], torch.randn(n, device=device).exp()
            s = sigma[:, None, None, None]
            scale = (s**2 + 0.25).sqrt()
            z = clean + s * torch.randn_like(clean)
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                f = forward(z / scale, sigma.log() / 4, label[index])
            target = (clean - 0.25 / scale**2 * z) / (0.5 * s / scale)
            return (f.float() - target).square().mean()

        return loop_by_hand(run, network, loss)


def _write_pixels(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 3, 32, 32), np.uint8)
    labels = rng.integers(0, 10, count)
    splits, names = ("train", "test"), [str(i) for i in range(10)]
    made = Decoded(dict.fromkeys(splits, images), dict.fromkeys(splits, labels), names, "random")
    kept, LOADERS["cifar10"] = LOADERS["cifar10"], lambda config: made
    try:
        prepare_images(DataConfig(name="cifar10", **NOWHERE["cifar10"]), folder)
    finally:
        LOADERS["cifar10"] = kept


def _write_latents(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    moments = rng.standard_normal((count, 2 * CHANNELS, SIDE, SIDE), np.float32)
    arrays = {"latents": moments.astype(np.float16), "latent_labels": rng.integers(0, 1000, count)}
    found = {"count": count}
    for kind, array in arrays.items():
        np.save(folder / f"train_{kind}.npy", array, allow_pickle=False)
        found[f"{kind}_sha256"] = sha256(folder / f"train_{kind}.npy")
    write_json(
        folder / "latents.json",
        {
            "autoencoder": "none",
            "autoencoder_sha256": "",
            "classes": 1000,
            "mean": [0.0] * CHANNELS,
            "std": [1.0] * CHANNELS,
            "splits": {"train": found},
        },
    )


@dataclass(frozen=True)
class TextCase:
    """A language network: the plain one end to end, and a denoising block of it.

    Attributes:
        batch: sequences.
        count: sequences in the text.
        most_time: what all blocks should take at most, end to end being 1. A block sees every
            sequence twice, clean and noisy, and has a head of its own: at equal tokens the four
            of GPT do 2.26 times the operations of end to end. The target of `make bench` for a
            denoising step over one end to end of as many layers leaves little above that.
    """

    name: str
    network: dict
    vocabulary: int
    batch: int
    target: float
    count: int = 8192
    blocks: int = 4
    most_time: float = 2.3
    unit: str = "tokens"

    def _point(self, blocks: int, **training) -> TextPoint:
        network = validated(GPTConfig, self.network, "bench_gpu")
        return text_point(network, self.vocabulary, blocks, "frozen", **training)

    def run(self, blocks: int, options: argparse.Namespace) -> RunConfig:
        """The run whose steps are timed."""
        run = self._point(blocks, **training_of(options, self.batch, False)).run
        compute = run.compute.model_copy(update={"device": options.device})
        # As in the language recipe; where a block has no neighbour there is nothing to share.
        overlap = 0.1 if blocks > 1 else 0.0
        return run.model_copy(update={"compute": compute, "overlap": overlap})

    def write(self, folder: Path) -> None:
        """A prepared text."""
        folder.mkdir(parents=True)
        rng, length = np.random.default_rng(0), self.network["context_length"]
        splits = {}
        for split in SPLITS:
            tokens = rng.integers(0, self.vocabulary, self.count * length).astype("<u2")
            tokens.tofile(folder / f"{split}.bin")
            splits[split] = {
                "tokens": len(tokens),
                "characters": 4 * len(tokens),
                "documents": 1,
                "sha256": sha256(folder / f"{split}.bin"),
            }
        write_text(folder / "tokenizer.json", "{}")
        write_json(
            folder / "text.json",
            {
                "name": "random",
                "note": "random tokens",
                "tokenizer": "none",
                "tokenizer_sha256": sha256(folder / "tokenizer.json"),
                "vocabulary": self.vocabulary,
                "end": 0,
                "dtype": "<u2",
                "splits": splits,
            },
        )

    def examples(self, run: RunConfig) -> int:
        """Tokens of a step; a denoising one counts each once, though it sees it twice."""
        return run.training.batch_size * run.network.context_length

    def flops(self, run: RunConfig) -> int:
        """Operations of a step that recomputes nothing, by PyTorch's counter."""
        return step_flops(self._point(run.blocks, batch_size=1)) * run.training.batch_size

    def plain_step(self, run: RunConfig, data: Path, device: torch.device) -> Step:
        """See :func:`loop_by_hand`."""
        task = TASKS["language"](run, data, device)
        network = task.network(run.network.layers, "plain").train()
        length = run.network.context_length
        text = task.train.windows(torch.arange(task.windows), length).to(device)
        n, low = run.training.batch_size, run.training.precision == "bf16"

        def loss(forward) -> Tensor:
            tokens = text[torch.randint(len(text), (n,), device=device)]
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                logits = forward(tokens)[:, :-1]
            return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

        return loop_by_hand(run, network, loss)
