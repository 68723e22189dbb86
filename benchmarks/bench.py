"""Speed against its targets: prints a table and writes results/bench/speed.csv.

Every value is a ratio of two things measured in turn within this run, or a time of a whole
process; on a busy machine ratios hold where absolute times do not. Nothing here is a test.
"""

import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusionblocks.blocks import Assembled
from diffusionblocks.cli import main as cli
from diffusionblocks.config import Preset, RunConfig, load_preset
from diffusionblocks.generate import generate_images
from diffusionblocks.networks.dit import DiT, DiTShape
from diffusionblocks.parts import part_of
from diffusionblocks.tasks import TASKS
from diffusionblocks.training.step import new_state, train_step

ROUNDS = 12
COLUMNS = ("name", "value", "unit", "target", "better")


def row(name: str, value: float, unit: str, target: float, better: str) -> dict:
    """One line of the table; ``better`` says on which side of the target is good."""
    return dict(zip(COLUMNS, (name, round(value, 3), unit, target, better), strict=True))


def seconds(work: Callable[[], object], repeat: int = 1) -> float:
    """Seconds that ``repeat`` calls take, each."""
    began = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - began) / repeat


def paired(candidates: dict[str, Callable[[], object]], rounds: int, repeat: int) -> dict:
    """Median seconds of every candidate, measured in turn so that drift hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for work in candidates.values():
        work()
    for _ in range(rounds):
        for name, work in candidates.items():
            times[name].append(seconds(work, repeat))
    return {name: statistics.median(values) for name, values in times.items()}


def steps_of(run: RunConfig, data: Path) -> Callable[[], None]:
    """One training iteration of every block of a run, as its jobs do it."""
    task = TASKS[run.task](run, data, torch.device("cpu"))
    settings, jobs = run.training, []
    for name in run.parts:
        part = part_of(run, name)
        network = task.network(part.depth, name).train()
        state = new_state(network, settings.betas, settings.weight_decay)
        jobs.append((part.blocks[0], state))
    iteration = iter(range(10**9))

    def work() -> None:
        i = next(iteration)
        for block, state in jobs:
            batch = task.batch(block, i)
            loss = partial(task.loss, state.network, batch, None)
            train_step(state, [loss], settings.learning_rate, 0.9, settings.clip_norm)

    return work


def training_ratios(preset: Preset, data: Path) -> list[dict]:
    """Total training time of all blocks against end to end, at equal layer evaluations."""
    runs = {
        r.blocks: r
        for r in preset.runs()
        if r.method != "blockwise_interleaved" and r.partition in (None, "equal_mass")
    }
    found = paired({f"{B}": steps_of(run, data) for B, run in runs.items()}, ROUNDS, 4)
    targets = {2: 1.10, 3: 1.10, 6: 1.25}
    return [
        row(f"training_time_B{B}_to_B1", found[f"{B}"] / found["1"], "ratio", target, "lower")
        for B, target in targets.items()
    ]


def call(*arguments: object) -> None:
    """One verb of the command line in this process."""
    if code := cli([str(a) for a in arguments]):
        raise SystemExit(code)


def trained(preset: str, run: RunConfig, data: Path, folder: Path) -> Path:
    """Train a run for one iteration and return its manifest: speed does not need quality."""
    select = ["--preset", preset, "--set", "training.iterations=1", "--run", run.name]
    for part in run.parts:
        call("train", *select, "--part", part, "--data", data,
             "--output", folder / f"{part}.safetensors", "--state", folder / "state")  # fmt: skip
    call("assemble", *select, "--parts", folder, "--output", folder / "manifest.json")
    return folder / "manifest.json"


def sampling_ratio(preset_name: str, preset: Preset, data: Path, folder: Path) -> list[dict]:
    """Images a second at B = 3 against B = 1."""
    settings = preset.sampling["plain"].model_copy(update={"steps": 25})
    work = {}
    for name in ("end_to_end-s0", "independent-B3-equal_mass-overlap0-s0"):
        manifest = trained(preset_name, preset.run(name), data, folder / name)
        model = Assembled(manifest, torch.device("cpu"))
        work[name] = partial(generate_images, model, settings, 0, 100, 0)
    one, three = paired(work, 5, 1).values()
    return [row("sampling_speed_B3_to_B1", one / three, "ratio", 2.5, "higher")]


def job(preset_name: str, data: Path, folder: Path, part: str, iterations: int) -> list[str]:
    """The command line of one training job."""
    run = "independent-B2-equal_mass-overlap0-s0"
    return [
        sys.executable, "-m", "diffusionblocks", "train", "--preset", preset_name,
        "--set", f"training.iterations={iterations}", "--run", run, "--part", part,
        "--data", str(data), "--output", str(folder / f"{part}.safetensors"),
        "--state", str(folder / "state" / part),
    ]  # fmt: skip


def job_times(preset_name: str, data: Path, folder: Path) -> list[dict]:
    """Two blocks side by side against one after the other; and what a job costs before it works."""

    def run(*commands: list[str]) -> None:
        processes = [subprocess.Popen(c, stderr=subprocess.DEVNULL) for c in commands]
        if any(p.wait() for p in processes):
            raise SystemExit("a training job failed")

    blocks = [job(preset_name, data, folder, f"block{b}", 500) for b in (0, 1)]
    one_by_one, together = [], []
    for _ in range(3):
        one_by_one.append(seconds(lambda: [run(c) for c in blocks]))
        together.append(seconds(lambda: run(*blocks)))
    speedup = statistics.median(one_by_one) / statistics.median(together)
    shortest = partial(run, job(preset_name, data, folder, "block0", 1))
    fixed = statistics.median(seconds(shortest) for _ in range(5))
    return [
        row("two_jobs_on_two_cores_speedup", speedup, "ratio", 1.7, "higher"),
        row("job_fixed_cost", fixed, "s", 6, "lower"),
    ]


class HandWritten(nn.Module):
    """DiT-S/2 as one would write it without the suite, for the same shapes and arithmetic."""

    def __init__(self, width: int, heads: int, layers: int, tokens: int, patch_values: int):
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(patch_values, width)
        self.positions = nn.Buffer(torch.zeros(tokens, width))
        self.condition = nn.Linear(1, width)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "ada": nn.Linear(width, 6 * width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(width, patch_values)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Patches [N, tokens, values] and a number each [N, 1] → [N, tokens, values]."""
        n, t, _ = x.shape
        x = self.embed(x) + self.positions
        c = F.silu(self.condition(c))
        for layer in self.layers:
            s1, b1, g1, s2, b2, g2 = layer["ada"](c)[:, None].chunk(6, 2)
            h = F.layer_norm(x, x.shape[-1:]) * (1 + s1) + b1
            q, k, v = layer["qkv"](h).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1)
            x = x + g1 * layer["out"](a)
            h = F.layer_norm(x, x.shape[-1:]) * (1 + s2) + b2
            x = x + g2 * layer["down"](F.gelu(layer["up"](h), approximate="tanh"))
        return self.head(F.layer_norm(x, x.shape[-1:]))


def hand_written_ratio(preset: Preset, batch: int = 8) -> list[dict]:
    """A whole step of the suite's DiT-S/2 against forward, backward and AdamW by hand."""
    shape = DiTShape(32, 3, 10, 384, 6, 2)
    network = DiT(shape, 12)
    network.initialise(torch.Generator().manual_seed(0))
    state = new_state(network, (0.9, 0.999), 0.0)
    task = TASKS["images"]
    run = preset.runs()[0]
    maker = object.__new__(task)  # its loss needs neither data nor a device
    maker.run, maker.device = run, torch.device("cpu")
    from diffusionblocks.preconditioning import Preconditioning
    from diffusionblocks.tasks.images import ImageBatch

    maker.preconditioning = Preconditioning()
    y = torch.randn(batch, 3, 32, 32)
    data = ImageBatch(y, torch.rand(batch) + 0.1, torch.randn_like(y), torch.zeros(batch).long())
    plain = HandWritten(384, 6, 12, 256, 12)
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-4, fused=True)
    x, c = torch.randn(batch, 256, 12), torch.randn(batch, 1)

    def by_hand() -> None:
        optimizer.zero_grad()
        plain(x, c).square().mean().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()

    def suite() -> None:
        train_step(state, [partial(maker.loss, network, data, None)], 1e-4, 0.9, 1.0)

    found = paired({"suite": suite, "by_hand": by_hand}, 8, 1)
    ratio = found["suite"] / found["by_hand"]
    return [row("dit_s2_step_to_hand_written", ratio, "ratio", 1.10, "lower")]


def publish(rows: list[dict], output: Path) -> None:
    """Write rows as CSV and print them with whether each meets its target."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{'name':34} {'value':>8} {'unit':6} {'target':>7}  met")
    for r in rows:
        met = r["value"] <= r["target"] if r["better"] == "lower" else r["value"] >= r["target"]
        sign = "≤" if r["better"] == "lower" else "≥"
        print(
            f"{r['name']:34} {r['value']:8.3f} {r['unit']:6} {sign}{r['target']:>6}  "
            f"{'yes' if met else 'no'}"
        )


def main() -> None:
    """Measure everything, print it, write it."""
    torch.set_num_threads(1)
    name = "default"
    preset = load_preset(Path(f"workflow/config/presets/{name}.yaml"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "data"
        call("data", "--preset", name, "--output", data)
        rows = training_ratios(preset, data)
        rows += sampling_ratio(name, preset, data, folder)
        rows += job_times(name, data, folder / "jobs")
        rows += hand_written_ratio(preset)
    publish(rows, Path("results/bench/speed.csv"))


if __name__ == "__main__":
    main()
