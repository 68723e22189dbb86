"""What a preset costs: jobs, planned memory per job, disk, arithmetic.

Nothing here is measured on a device: memory is planned to the byte, arithmetic is counted on the
library's own step, and GPU hours are an estimate from a stated utilisation.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from ..config import LATENT_SETS, Preset, RunConfig
from ..data.imagenet import SIDE as SCORED_SIDE
from ..data.latents import CHANNELS as LATENT_CHANNELS
from ..data.latents import SIDE as LATENT_SIDE
from ..memory.formula import of_depth
from ..memory.plan import plan
from ..memory.point import DATA_IMAGES, Point, with_training
from ..memory.rehearsal import Rehearsal
from ..parts import part_of
from ..status import jobs_of

#: Training and held-out images of every data set.
COUNTS = {"digits": (1_200, 597), "cifar10": (50_000, 10_000), "imagenet256": (1_281_167, 50_000)}
#: Multiplications and additions a second of an H200 in bf16 without sparsity, by its data sheet.
H200_BF16 = 989e12
#: The share of them that training and sampling are assumed to reach.
UTILISATION = 0.4
FLOAT = 4


@dataclass(frozen=True)
class Cost:
    """What a preset costs.

    Attributes:
        jobs: number by stage.
        planned: bytes of a training step of the deepest part, by number of blocks.
        disk: bytes by what they are for, at the end; checkpoints are there while jobs run.
        flops: of training, and of sampling or generation.
        uncounted: what lies on disk besides, whose size the preset does not tell; "" if nothing.
    """

    jobs: dict[str, int]
    planned: dict[int, int]
    disk: dict[str, int]
    flops: dict[str, float]
    uncounted: str = ""

    def gpu_hours(self, utilisation: float = UTILISATION) -> float:
        """Hours on one H200 at that share of its bf16 rate: an estimate, not a measurement."""
        return sum(self.flops.values()) / (utilisation * H200_BF16) / 3600


def _point(preset: Preset, run: RunConfig) -> Point:
    return Point(preset.description, run, DATA_IMAGES[preset.data.name])


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, told of the CPU's attention kernel, which it leaves out."""
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def attention(q, k, v, *rest, out_shape=None, **named) -> int:
        return sdpa_flop_count(q, k, v)

    def attention_backward(grad, q, k, v, *rest, out_shape=None, **named) -> int:
        return sdpa_backward_flop_count(grad, q, k, v)

    mapping = {forward: attention, backward: attention_backward}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def step_flops(point: Point) -> int:
    """Floating-point operations of one training step, forward and backward, of a point."""
    with FakeTensorMode():
        rehearsal = Rehearsal(point, torch.device("cpu"))
        with flop_counter() as counter:
            rehearsal.step(rehearsal.blocks[-1])
    return counter.get_total_flops()


def parameters(point: Point) -> int:
    """Trained numbers of a point's network."""
    with FakeTensorMode():
        state = Rehearsal(point, torch.device("cpu")).state
    return sum(p.numel() for p in state.network.parameters())


class _ByDepth:
    """Numbers of the end-to-end network of a depth, asked for once each."""

    def __init__(self, preset: Preset):
        self._preset = preset
        self._whole = _point(preset, preset.runs()[0])
        self._known: dict[tuple[str, int], int] = {}

    def __call__(self, what: str, depth: int) -> int:
        if (what, depth) not in self._known:
            small = of_depth(self._whole, depth, 1)
            stored = with_training(small, activation_checkpointing=False)
            self._known[what, depth] = {
                "flops": lambda: step_flops(small),
                # Two thirds of a step that recomputes nothing is its backward pass.
                "forward": lambda: step_flops(stored) // 3,
                "parameters": lambda: parameters(small),
                "planned": lambda: plan(of_depth(self._whole, depth)).peak,
            }[what]()
        return self._known[what, depth]


def _data_bytes(preset: Preset) -> int:
    images, counts = DATA_IMAGES[preset.data.name], COUNTS[preset.data.name]
    if preset.data.name not in LATENT_SETS:
        return sum(counts) * images.channels * images.image_size**2
    scored = sum(min(count, preset.data.scored_images) for count in counts) * 3 * SCORED_SIDE**2
    return scored + sum(counts) * 2 * 2 * LATENT_CHANNELS * LATENT_SIDE**2


def _sample_values(preset: Preset) -> int:
    images = DATA_IMAGES[preset.data.name]
    latent = preset.data.name in LATENT_SETS
    return 3 * SCORED_SIDE**2 if latent else images.channels * images.image_size**2


def cost(preset: Preset, results) -> Cost:
    """What a preset costs.

    Args:
        results: any folder; only names of jobs are made of it.
    """
    jobs: dict[str, int] = {}
    for job in jobs_of(preset, results):
        jobs[job.stage] = jobs.get(job.stage, 0) + 1
    ask = _ByDepth(preset)
    planned: dict[int, int] = {}
    weights = checkpoints = 0
    training = sampling = 0.0
    images = preset.training.batch_size * preset.training.iterations
    drawn = {
        name: s.samples * (2 * s.steps - 1 if s.solver == "heun" else s.steps)
        for name, s in preset.sampling.items()
    }
    passes = sum(n * (1 if preset.sampling[k].guidance == 1 else 2) for k, n in drawn.items())
    for run in preset.runs():
        parts = [part_of(run, name) for name in run.parts]
        for part in parts:
            depth = part.depth
            if len(part.blocks) > 1:
                peak = plan(_point(preset, run)).peak
            else:
                peak = ask("planned", depth)
            planned[run.blocks] = max(planned.get(run.blocks, 0), peak)
            weights += FLOAT * ask("parameters", depth)
            checkpoints = max(checkpoints, 4 * FLOAT * ask("parameters", depth))
        depths = [len(layers) for layers in run.layer_ranges()]
        training += sum(images * ask("flops", depth) for depth in depths)
        # Noise levels are taken to be shared evenly by the blocks.
        sampling += passes * sum(ask("forward", depth) for depth in depths) / len(depths)
    samples = sum(s.samples for s in preset.sampling.values()) * _sample_values(preset)
    disk = {
        "data": _data_bytes(preset),
        "weights": weights,
        "samples": samples * len(preset.runs()),
        "a checkpoint": checkpoints,
    }
    return Cost(jobs, planned, disk, {"training": training, "sampling": sampling})


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.3g} GB"


def table(costs: Iterable[tuple[str, Cost]]) -> str:
    """Presets, named in Markdown, and what they cost, as a Markdown table."""
    lines = [
        "| preset | jobs | planned memory of a training job, B = | disk | arithmetic | "
        f"GPU hours (estimate: H200 at {UTILISATION:.0%} of its bf16 rate) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, c in costs:
        stages = ", ".join(f"{n} {stage}" for stage, n in c.jobs.items())
        planned = ", ".join(f"{B}: {n / 2**30:.1f} GiB" for B, n in sorted(c.planned.items()))
        disk = ", ".join(f"{what} {_gigabytes(n)}" for what, n in c.disk.items())
        disk += f"; {c.uncounted} not counted" if c.uncounted else ""
        flops = ", ".join(f"{what} {n:.2g} FLOP" for what, n in c.flops.items())
        cells = (
            name,
            f"{sum(c.jobs.values())} ({stages})",
            planned,
            disk,
            flops,
            f"{c.gpu_hours():.3g}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
