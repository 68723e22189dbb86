"""Memory against its targets: prints a table and writes results/bench/memory.csv.

All but the two times are exact: they are the same on every machine. Times are of the processor,
which planning keeps busy on one core: other work on the machine does not count.
"""

import resource
import subprocess
import sys
from pathlib import Path

from bench import publish
from timing import row

from diffusionblocks.memory.formula import DepthLaw, formula
from diffusionblocks.memory.measure import measure
from diffusionblocks.memory.plan import plan
from diffusionblocks.memory.point import LATENT, Images, Point, dit, from_sizes, with_training

#: Plans DiT-L/2 at batch 512 in a fresh process and prints seconds and its own peak in GB.
FRESH = """
import resource, sys, time
from diffusionblocks.memory.plan import plan
from diffusionblocks.memory.point import LATENT, Images, dit, from_sizes
point = from_sizes("L", dit("DiT-L/2").model_dump(), Images(*LATENT), batch_size=512)
began = time.process_time()
plan(point)
seconds = time.process_time() - began
unit = 1 if sys.platform == "darwin" else 1024
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9)
"""


def large(blocks: int = 1, **training: object) -> Point:
    """DiT-L/2 on latents, each block alone."""
    network = dit("DiT-L/2").model_dump()
    return from_sizes("DiT-L/2", network, Images(*LATENT), blocks=blocks, **training)


def small(method: str, blocks: int, **training: object) -> Point:
    """A network that a laptop trains in milliseconds."""
    network = {"layers": 6, "width": 32, "heads": 2, "patch": 2}
    return from_sizes("small", network, Images(8, 1, 10), method, blocks, batch_size=32, **training)


def _children_seconds() -> float:
    """Processor time of every process that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def planning() -> list[dict]:
    """Time and memory of planning in a fresh process, and of the whole command."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    seconds, gigabytes = map(float, done.stdout.split())
    command = [sys.executable, "-m", "diffusionblocks", "memory", "plan", "--model", "DiT-L/2"]
    before = _children_seconds()
    subprocess.run(
        [*command, "--blocks", "1", "--batch", "512"], check=True, stdout=subprocess.DEVNULL
    )
    whole = _children_seconds() - before
    return [
        row("plan_DiT-L/2_batch512", seconds, "s of processor", 5, "lower"),
        row("plan_command_with_start_of_PyTorch", whole, "s of processor", 5, "lower"),
        row("plan_peak_resident_set", gigabytes, "GB", 1.5, "lower"),
    ]


def proportionality() -> list[dict]:
    """DiT-L/2, batch 512, no checkpointing: peak(B)/peak(1) against 1/B, peak against its floor."""
    floor = formula(large(batch_size=512))
    points = {B: large(B, batch_size=512) for B in (1, 2, 3, 4, 6)}
    peaks = {B: plan(point).peak for B, point in points.items()}
    off = [
        row(
            f"ratio_minus_1/B_at_B{B}", 100 * abs(peaks[B] / peaks[1] - 1 / B), "points", 2, "lower"
        )
        for B in (2, 3, 4, 6)
    ]
    above = max(100 * (peaks[B] / floor.peak(point) - 1) for B, point in points.items())
    return [*off, row("peak_above_its_floor", above, "%", 1, "lower")]


def both_together() -> list[dict]:
    """Block-wise with checkpointing against the best of all other combinations, B = 1 to 6.

    For every batch from 8 to 512 in powers of two; the ratio nearest to 1 counts. The
    best other combination that has fewer blocks, or no checkpointing.
    """
    rows = []
    for precision in ("fp32", "bf16"):
        laws = {
            kept: DepthLaw(large(batch_size=8, precision=precision, activation_checkpointing=kept))
            for kept in (False, True)
        }
        ratios = []
        for batch in (8, 16, 32, 64, 128, 256, 512):
            peaks = {
                (B, kept): laws[kept].peak(24 // B, batch) for B in (1, 2, 3, 4, 6) for kept in laws
            }
            together = peaks.pop((6, True))
            ratios.append(together / min(peaks.values()))
        rows.append(row(f"blocks_and_checkpointing_{precision}", max(ratios), "ratio", 1, "lower"))
    return rows


def agreement() -> list[dict]:
    """Plan against the CPU allocator for all three methods on a small network."""
    methods = (("end_to_end", 1), ("blockwise_independent", 3), ("blockwise_interleaved", 3))
    plain = [small(*method) for method in methods]
    kept = [with_training(point, activation_checkpointing=True) for point in plain]
    worst = []
    for points in (plain, kept):
        found = measure(points, "cpu", 1, 0)
        worst.append(
            max(
                abs(values["measured_bytes"] / plan(point).peak - 1)
                for point, values in zip(points, found, strict=True)
            )
        )
    return [
        row("plan_off_allocator", 100 * worst[0], "%", 0, "lower"),
        row("plan_off_allocator_checkpointing", 100 * worst[1], "%", 3, "lower"),
    ]


if __name__ == "__main__":
    publish(
        planning() + proportionality() + both_together() + agreement(),
        Path("results/bench/memory.csv"),
    )
