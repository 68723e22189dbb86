"""Speed on a GPU: images or tokens a second, share of its arithmetic and peak memory of steps.

For every network: end to end, one of its blocks, and a minimal loop by hand around the same
network. Writes results/bench/gpu.csv. Without a GPU it says so and ends with exit code 2;
``--device cpu`` runs tiny networks through the same code, to check it.
"""

import argparse
import csv
import gc
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from gpu_cases import ImageCase, Step, TextCase
from timing import row
from torch import nn

from diffusionblocks.config import RunConfig
from diffusionblocks.devices import prepare_for
from diffusionblocks.errors import UserError
from diffusionblocks.memory.allocator import AllocatorPeak
from diffusionblocks.memory.point import dit
from diffusionblocks.noise import edm_grid
from diffusionblocks.parts import part_of
from diffusionblocks.preconditioning import Preconditioning
from diffusionblocks.sampling import euler, guided, routed
from diffusionblocks.tasks import TASKS
from diffusionblocks.tasks.images import noise_law, noise_ranges
from diffusionblocks.training.loop import step_losses
from diffusionblocks.training.step import new_state, train_step

#: bf16 multiplications and additions a second without sparsity, by data sheets; first match.
PEAKS = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}
COLUMNS = (
    "network,what,batch,precision,compile,seconds_per_step,unit,per_second,flops_per_step,"
    "utilisation,peak_memory_bytes,device"
).split(",")
TINY = {"layers": 3, "width": 16, "heads": 2, "patch": 8}
#: The language recipe's network.
GPT = {"layers": 12, "width": 768, "heads": 12, "context_length": 256, "mlp_width": 2048}
TINY_GPT = {"layers": 4, "width": 16, "heads": 2, "context_length": 24}
#: On a GPU. End to end DiT-L/2 fits one device at half the published batch, and the language
#: network at that of its recipe, without recomputing anything.
CASES = [
    ImageCase("DiT-S/2", dit("DiT-S/2").model_dump(), "cifar10", 512, 0.40),
    ImageCase("DiT-L/2", dit("DiT-L/2").model_dump(), "imagenet256", 256, 0.50),
    TextCase("GPT", GPT, 32_000, 256, 0.40),
]
#: On the CPU.
TINY_CASES = [
    ImageCase("tiny", TINY, "cifar10", 4, 0.0, count=64),
    ImageCase("tiny-latents", TINY, "imagenet256", 4, 0.0, checkpointing=True, count=64),
    TextCase("tiny-gpt", TINY_GPT, 50, 4, 0.0, count=64),
]
KNOWN = {case.name: case for case in [*CASES, *TINY_CASES]}


def wait(device: torch.device) -> None:
    """Until the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_rate(name: str, precision: str) -> float:
    """Operations a second that a device of that name can do at most; 0 where it is not known."""
    if precision != "bf16":
        return 0.0
    return next((rate for key, rate in PEAKS.items() if key in name), 0.0)


def release(device: torch.device, compiled: bool) -> None:
    """Give back what dropped networks held, so that none counts in the next one's peak."""
    if compiled:
        torch._dynamo.reset()  # also drops the memory of CUDA graphs
    gc.collect()  # compiled networks and optimisers may lie in cycles
    if device.type == "cuda":
        torch.cuda.empty_cache()


def suite_step(run: RunConfig, data: Path, device: torch.device) -> Step:
    """A step as the suite's jobs do it, its batch included."""
    task = TASKS[run.task](run, data, device)
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


def timed(step: Step, device: torch.device, steps: int) -> tuple[float, int]:
    """Seconds a step and the allocator's peak in bytes, once it has warmed up."""
    step()  # compiles, and makes the optimiser's moments
    # The second step records CUDA graphs where the mode has them. Only then are all tensors in
    # them counted: replays do not go through the allocator.
    with AllocatorPeak(device) as memory:
        for _ in range(3):
            step()
    wait(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    return (time.perf_counter() - began) / steps, memory.peak


def sampling_seconds(case: ImageCase, run: RunConfig, device: torch.device) -> float:
    """Seconds to draw one batch by 10 guided Euler steps from networks that learnt nothing."""
    from diffusionblocks.networks.dit import DiT
    from diffusionblocks.tasks.images import dit_shape

    side, channels, classes = case.images.image_size, case.images.channels, case.images.classes
    shape = dit_shape(run.network, side, channels, classes)
    networks = [DiT(shape, len(r)).eval().to(device) for r in run.layer_ranges()]
    c, n = Preconditioning(), run.training.batch_size
    z = 80 * torch.randn(n, channels, side, side, device=device)
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


def measure(
    case: ImageCase | TextCase, folder: Path, options: argparse.Namespace
) -> tuple[list[dict], list[dict]]:
    """Rows of numbers, and rows of targets, of one network."""
    data, B = folder / case.name.replace("/", "-"), case.blocks
    case.write(data)
    whole, block = case.run(1, options), case.run(B, options)
    device = prepare_for(whole.compute)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = options.peak or peak_rate(name, options.precision)
    makers = {
        "end to end": (suite_step, whole),
        f"one block of {B}": (suite_step, block),
        "end to end, minimal loop by hand": (case.plain_step, whole),
    }
    rows = []
    for what, (make, run) in makers.items():
        seconds, memory = timed(make(run, data, device), device, options.steps)
        flops = case.flops(run)
        use = flops / seconds / peak if peak else None
        values = (case.name, what, run.training.batch_size, run.training.precision,
                  options.compile, seconds, case.unit, case.examples(run) / seconds, flops, use,
                  memory, name)  # fmt: skip
        rows.append(dict(zip(COLUMNS, values, strict=True)))
        release(device, options.compile != "off")
    first, second, third = (r["seconds_per_step"] for r in rows)
    targets = [
        row(f"{case.name}_training_time_B{B}_to_B1", B * second / first, "ratio", case.most_time,
            "lower"),
        row(f"{case.name}_step_to_minimal_loop", first / third, "ratio", 1.05, "lower"),
    ]  # fmt: skip
    if isinstance(case, ImageCase):
        one, several = (sampling_seconds(case, run, device) for run in (whole, block))
        ratio = one / several
        targets.append(row(f"{case.name}_sampling_speed_B{B}_to_B1", ratio, "ratio", 2.7, "higher"))
    if peak:
        use = rows[0]["utilisation"]
        targets.append(row(f"{case.name}_utilisation", use, "share", case.target, "higher"))
    return rows, targets


def attempt(
    case: ImageCase | TextCase, folder: Path, options: argparse.Namespace
) -> tuple[list[dict], list[dict]] | None:
    """What :func:`measure` finds; None, and a word on it, where the device is too small."""
    try:
        return measure(case, folder, options)
    except torch.OutOfMemoryError:
        print(
            f"bench_gpu: {case.name} needs more memory than the device has; measure it alone by "
            f"--networks {case.name} --batch NUMBER, below {options.batch or case.batch}",
            file=sys.stderr,
        )
    # Only here, where the error is gone, does nothing hold what was being measured.
    release(torch.device(options.device), options.compile != "off")
    return None


def show(rows: list[dict], targets: list[dict]) -> None:
    """Print what was measured."""
    for r in rows:
        use = "unknown" if r["utilisation"] is None else f"{r['utilisation']:.1%}"
        print(
            f"{r['network']:12} {r['what']:33} {r['per_second']:11.1f} {r['unit']}/s  "
            f"utilisation {use:>7}  peak {r['peak_memory_bytes'] / 2**30:7.3f} GiB"
        )
    for t in targets:
        sign = "≤" if t["better"] == "lower" else "≥"
        print(f"{t['name']:42} {t['value']:8.3f}  target {sign} {t['target']}")


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--networks", nargs="+", choices=[*KNOWN], help="which, by name")
    parser.add_argument("--batch", type=int, help="instead of 512 (DiT-L/2 and GPT: 256)")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    modes = ["default", "reduce-overhead", "max-autotune", "off"]
    parser.add_argument("--compile", choices=modes, help="default on CUDA, off on the CPU")
    parser.add_argument("--peak", type=float, help="the device's FLOP/s, where not known; for fp32")
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
    usual = TINY_CASES if on_cpu else CASES
    cases = [KNOWN[name] for name in options.networks] if options.networks else usual
    rows, targets, code = [], [], 0
    try:
        with tempfile.TemporaryDirectory() as temporary:
            for case in cases:
                found = attempt(case, Path(temporary), options)
                if found is None:
                    code = 1
                else:
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
    return code


if __name__ == "__main__":
    sys.exit(main())
