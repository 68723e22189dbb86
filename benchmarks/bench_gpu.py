"""Speed on a GPU: images a second, share of its arithmetic and peak memory of training steps.

For every network: end to end, one of its blocks, and a minimal loop by hand around the same
network. Writes results/bench/gpu.csv. Without a GPU it says so and ends with exit code 2;
``--device cpu`` runs a tiny network through the same code, to check it.
"""

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from timing import row
from torch import nn

from diffusionblocks.config import DataConfig, RunConfig, validated
from diffusionblocks.data.images import LOADERS, Decoded, prepare_images
from diffusionblocks.data.latents import CHANNELS, SIDE
from diffusionblocks.devices import prepare_for
from diffusionblocks.errors import UserError
from diffusionblocks.files import sha256, write_json
from diffusionblocks.memory.allocator import AllocatorPeak
from diffusionblocks.memory.point import Images, dit, from_sizes
from diffusionblocks.noise import edm_grid
from diffusionblocks.paper.cost import step_flops
from diffusionblocks.parts import part_of
from diffusionblocks.preconditioning import Preconditioning
from diffusionblocks.sampling import euler, guided, routed
from diffusionblocks.tasks.images import ImageTask, noise_law, noise_ranges
from diffusionblocks.training.loop import step_losses
from diffusionblocks.training.step import new_state, train_step

#: bf16 multiplications and additions a second without sparsity, by data sheets; first match.
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
BLOCKS = 3
COLUMNS = (
    "network,what,batch,precision,compile,seconds_per_step,images_per_second,flops_per_step,"
    "utilisation,peak_memory_bytes,device"
).split(",")


@dataclass(frozen=True)
class Case:
    """A network on a data set; ``target``: the share of the GPU's arithmetic it should reach."""

    name: str
    network: dict
    data: str
    batch: int
    target: float
    checkpointing: bool = False


TINY = {"layers": 3, "width": 16, "heads": 2, "patch": 8}
#: End to end DiT-L/2 fits one device at half the published batch without recomputing anything.
CASES = {
    "DiT-S/2": Case("DiT-S/2", dit("DiT-S/2").model_dump(), "cifar10", 512, 0.40),
    "DiT-L/2": Case("DiT-L/2", dit("DiT-L/2").model_dump(), "imagenet256", 256, 0.50),
    "tiny": Case("tiny", TINY, "cifar10", 4, 0.0),
    "tiny-latents": Case("tiny-latents", TINY, "imagenet256", 4, 0.0, True),
}


def run_of(case: Case, blocks: int, options: argparse.Namespace) -> RunConfig:
    """The run whose steps are timed."""
    latent = {"autoencoder": "none", "scored_images": 1} if case.data == "imagenet256" else {}
    settings = {
        "task": "images",
        "data": {"name": case.data} | latent,
        "network": case.network,
        "noise": {},
        "training": {
            "iterations": 10**6,
            "batch_size": options.batch or case.batch,
            "learning_rate": 1e-4,
            "ema_halflife_samples": 500_000,
            "precision": options.precision,
            "compile": options.compile != "off",
            "compile_mode": "default" if options.compile == "off" else options.compile,
            "activation_checkpointing": case.checkpointing and blocks == 1,
        },
        "compute": {"device": options.device},
        "method": "end_to_end" if blocks == 1 else "blockwise_independent",
        "blocks": blocks,
        "partition": None if blocks == 1 else "equal_mass",
        "overlap": 0.0,
        "layers_per_block": None,
        "seed": 0,
    }
    return validated(RunConfig, settings, "bench_gpu")


def noise_data(name: str, folder: Path, count: int) -> None:
    """Write a prepared data set of random values: speed does not depend on what is in it."""
    rng = np.random.default_rng(0)
    if name == "cifar10":
        images = rng.integers(0, 256, (count, 3, 32, 32), np.uint8)
        labels = rng.integers(0, 10, count)
        made = Decoded(
            {split: images for split in ("train", "test")},
            {split: labels for split in ("train", "test")},
            [str(i) for i in range(10)],
            "random",
        )
        kept, LOADERS[name] = LOADERS[name], lambda config: made
        try:
            prepare_images(DataConfig(name=name), folder)
        finally:
            LOADERS[name] = kept
        return
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


def wait(device: torch.device) -> None:
    """Until the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def suite_step(run: RunConfig, data: Path, device: torch.device) -> Callable[[], None]:
    """A step as the suite's jobs do it, its batch included."""
    task = ImageTask(run, data, device)
    settings, part = run.training, part_of(run, run.parts[0])
    network = task.network(part.depth, part.name).train()
    state = new_state(network, settings.betas, settings.weight_decay)
    forward = network
    if settings.compile:
        forward = torch.compile(network, mode=settings.compile_mode, dynamic=False)
    iteration = iter(range(10**6))

    def step() -> None:
        batch = task.batch(0, next(iteration))
        losses = step_losses(run, part, task, forward, batch, 0)
        train_step(state, losses, settings.learning_rate, 0.999, settings.clip_norm)

    return step


def plain_step(run: RunConfig, data: Path, device: torch.device) -> Callable[[], None]:
    """The least that trains the same network: no average, no clipping, no exact order of data."""
    task = ImageTask(run, data, device)
    settings = run.training
    network = task.network(run.network.layers, "plain").train()
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, fused=True)
    forward = torch.compile(network, dynamic=False) if settings.compile else network
    everything = torch.arange(task.source.count)
    own = torch.Generator(device).manual_seed(0)
    y, label = (t.to(device) for t in task.source.examples(everything, own))
    low = settings.precision == "bf16"

    def step() -> None:
        index = torch.randint(len(y), (settings.batch_size,), device=device)
        clean, sigma = y[index], torch.randn(settings.batch_size, device=device).exp()
        s = sigma[:, None, None, None]
        scale = (s**2 + 0.25).sqrt()
        z = clean + s * torch.randn_like(clean)
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            f = forward(z / scale, sigma.log() / 4, label[index])
        target = (clean - 0.25 / scale**2 * z) / (0.5 * s / scale)
        optimizer.zero_grad()
        (f.float() - target).square().mean().backward()
        optimizer.step()

    return step


def timed(step: Callable[[], None], device: torch.device, steps: int) -> tuple[float, int]:
    """Seconds a step and the allocator's peak in bytes, once it has warmed up."""
    for _ in range(3):
        step()
    with AllocatorPeak(device) as memory:
        step()
    wait(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    return (time.perf_counter() - began) / steps, memory.peak


def flops_of(run: RunConfig) -> int:
    """Operations of a step that recomputes nothing, by PyTorch's counter."""
    images = Images(32, 3, 10) if run.data.name == "cifar10" else Images(32, CHANNELS, 1000)
    layers = len(run.layer_ranges()[0])
    sizes = run.network.model_dump() | {"layers": layers}
    return step_flops(from_sizes("bench", sizes, images, batch_size=1)) * run.training.batch_size


def sampling_seconds(run: RunConfig, device: torch.device, channels: int, classes: int) -> float:
    """Seconds to draw one batch by 10 guided Euler steps from networks that learnt nothing."""
    from diffusionblocks.networks.dit import DiT
    from diffusionblocks.tasks.images import dit_shape

    shape = dit_shape(run.network, 32, channels, classes)
    networks = [DiT(shape, len(r)).eval().to(device) for r in run.layer_ranges()]
    c, n = Preconditioning(), run.training.batch_size
    z = 80 * torch.randn(n, channels, 32, 32, device=device)
    label = torch.zeros(n, dtype=torch.int64, device=device)

    def denoise(network: nn.Module, label, z, sigma: float):
        return c.denoise(network, z, torch.full((n,), sigma, device=device), label)

    law, ranges = noise_law(run.noise), noise_ranges(run)
    chains = [
        routed([partial(denoise, network, own) for network in networks], ranges)
        for own in (label, torch.full_like(label, classes))
    ]

    @torch.inference_mode()
    def draw() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=run.training.precision == "bf16"):
            euler(guided(*chains, 2.0), z, edm_grid(law, 10))

    draw()
    wait(device)
    began = time.perf_counter()
    draw()
    wait(device)
    return time.perf_counter() - began


def measure(case: Case, folder: Path, options: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Rows of numbers, and rows of targets, of one network."""
    data = folder / case.name.replace("/", "-")
    noise_data(case.data, data, 64 if case.name.startswith("tiny") else 8192)
    whole, block = (run_of(case, blocks, options) for blocks in (1, BLOCKS))
    device = prepare_for(whole.compute)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = options.peak or next((rate for key, rate in PEAKS.items() if key in name), 0.0)
    makers = {
        "end to end": (suite_step, whole),
        f"one block of {BLOCKS}": (suite_step, block),
        "end to end, minimal loop by hand": (plain_step, whole),
    }
    rows, taken = [], {}
    for what, (make, run) in makers.items():
        seconds, memory = timed(make(run, data, device), device, options.steps)
        taken[what] = seconds
        flops, n = flops_of(run), run.training.batch_size
        use = flops / seconds / peak if peak else None
        values = (case.name, what, n, run.training.precision, options.compile, seconds, n / seconds,
                  flops, use, memory, name)  # fmt: skip
        rows.append(dict(zip(COLUMNS, values, strict=True)))
        torch._dynamo.reset() if options.compile != "off" else None
        if device.type == "cuda":
            torch.cuda.empty_cache()
    channels, classes = (3, 10) if case.data == "cifar10" else (CHANNELS, 1000)
    one, three = (sampling_seconds(run, device, channels, classes) for run in (whole, block))
    first, second, third = taken.values()
    targets = [
        row(f"{case.name}_training_time_B{BLOCKS}_to_B1", BLOCKS * second / first, "ratio", 1.08,
            "lower"),
        row(f"{case.name}_step_to_minimal_loop", first / third, "ratio", 1.05, "lower"),
        row(f"{case.name}_sampling_speed_B{BLOCKS}_to_B1", one / three, "ratio", 2.7, "higher"),
    ]  # fmt: skip
    if peak:
        use = rows[0]["utilisation"]
        targets.append(row(f"{case.name}_utilisation", use, "share", case.target, "higher"))
    return rows, targets


def show(rows: list[dict], targets: list[dict]) -> None:
    """Print what was measured."""
    for r in rows:
        use = "unknown" if r["utilisation"] is None else f"{r['utilisation']:.1%}"
        print(
            f"{r['network']:12} {r['what']:33} {r['images_per_second']:10.1f} images/s  "
            f"utilisation {use:>7}  peak {r['peak_memory_bytes'] / 2**30:7.3f} GiB"
        )
    for t in targets:
        sign = "≤" if t["better"] == "lower" else "≥"
        print(f"{t['name']:42} {t['value']:8.3f}  target {sign} {t['target']}")


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--networks", nargs="+", choices=[*CASES], help="which, by name")
    parser.add_argument("--batch", type=int, help="instead of 512 (DiT-L/2: 256)")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    modes = ["default", "reduce-overhead", "max-autotune", "off"]
    parser.add_argument("--compile", choices=modes, help="default on CUDA, off on the CPU")
    parser.add_argument("--peak", type=float, help="the device's FLOP/s, where it is not known")
    parser.add_argument("--output", type=Path, default=Path("results/bench/gpu.csv"))
    options = parser.parse_args(argv)
    on_cpu = options.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        print(
            "bench_gpu: found no CUDA device; run it where there is one, or check its code with "
            "--device cpu",
            file=sys.stderr,
        )
        return 2
    options.compile = options.compile or ("off" if on_cpu else "default")
    names = options.networks or (["tiny", "tiny-latents"] if on_cpu else ["DiT-S/2", "DiT-L/2"])
    rows, targets = [], []
    try:
        with tempfile.TemporaryDirectory() as temporary:
            for name in names:
                found = measure(CASES[name], Path(temporary), options)
                rows, targets = rows + found[0], targets + found[1]
    except UserError as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        return 2
    show(rows, targets)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
