"""What one job of the sweep does, from its input files to its output files.

Each function here is one verb of the command line. Outputs appear whole or not at all;
the JSON that describes them is written last.
"""

import csv
import io
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .blocks import Assembled
from .config import Preset, RunConfig, SamplingConfig
from .data.images import load_split, prepare_images
from .devices import prepare
from .files import read_json, write_json, write_text
from .generate import generate_images, layer_evaluations_per_trajectory
from .manifest import write_part
from .memory.allocator import JobPeak
from .parts import Part, part_of
from .provenance import provenance
from .tasks import TASKS
from .tensors import load_tensors, save_tensors
from .training.loop import Trained, forget, schedule_of, train

#: Rows that a training curve is averaged down to, per block.
CURVE_ROWS = 200


def prepare_data(preset: Preset, folder: Path) -> None:
    """Verb ``data``: decode the preset's data set into a folder."""
    prepare_images(preset.data, folder)


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Peak memory of this process so far, and what kind of peak it is."""
    if device.type == "cuda":
        return {
            "peak_memory_bytes": torch.cuda.max_memory_allocated(device),
            "peak_memory_kind": "cuda allocator",
        }
    return {"peak_memory_bytes": peak_resident(), "peak_memory_kind": "resident set"}


def peak_resident() -> int:
    """Most bytes of this process that were in memory at once: programs, files, everything."""
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes * (1 if sys.platform == "darwin" else 1024)


def curve_csv(run: RunConfig, part: Part, history: Tensor) -> str:
    """Loss and gradient norm per block, averaged over consecutive iterations, as CSV."""
    width = math.ceil(run.training.iterations / CURVE_ROWS)
    bins: dict[tuple[int, int], list[Tensor]] = {}
    for step, values in enumerate(history):
        block, iteration = schedule_of(run, part, step)
        bins.setdefault((block, iteration // width), []).append(values)
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["block", "iteration", "loss", "grad_norm"])
    for (block, place), values in sorted(bins.items()):
        loss, norm = torch.stack(values).mean(0).tolist()
        rows.writerow([block, place * width + len(values), f"{loss:.7g}", f"{norm:.7g}"])
    return out.getvalue()


def train_part(
    run: RunConfig,
    name: str,
    data: Path,
    output: Path,
    state: Path,
    report: Callable[[int, int, float], None],
) -> None:
    """Verb ``train``: train one part of a run, resuming from ``state`` where it can.

    Writes ``output`` (averaged weights), its curve ``<stem>-curve.csv`` and ``<stem>.json``.
    """
    part = part_of(run, name)
    device = prepare(run.compute.device, run.compute.threads)
    with JobPeak(device, len(part.blocks) + 1) as memory:
        task = TASKS[run.task](run, data, device)

        def clock() -> float:
            return time.monotonic() - memory.seconds

        trained = train(run, part, task, task.ranges, state, clock, report, memory.after_step)
    # Outputs of an earlier configuration must not vouch for these weights while they are replaced.
    output.with_suffix(".json").unlink(missing_ok=True)
    save_tensors(output, trained.ema, {"config_hash": run.hash})
    write_text(output.with_name(f"{output.stem}-curve.csv"), curve_csv(run, part, trained.history))
    write_part(output, _part_record(run, part, task, trained, device, memory))
    forget(state)


def _part_record(
    run: RunConfig, part: Part, task, trained: Trained, device: torch.device, memory: JobPeak
) -> dict[str, Any]:
    """What is known of a trained part, ready for JSON."""
    steps = len(trained.history)
    _, channels, side, _ = task.train.images.shape
    layers = {b: part.layers[b] or range(part.depth) for b in part.blocks}
    return {
        "run": run.identity(),
        "part": part.name,
        "config": run.model_dump(mode="json"),
        "config_hash": run.hash,
        "images": {"image_size": side, "channels": channels, "classes": task.train.classes},
        "blocks": [
            {
                "block": b,
                "first_layer": run.layer_ranges()[b].start,
                "layers": len(layers[b]),
                **vars(task.ranges[b]),
                "layer_evaluations": run.training.iterations
                * run.training.batch_size
                * len(layers[b]),
            }
            for b in part.blocks
        ],
        "iterations": run.training.iterations,
        "parameters": trained.parameters,
        "diverged_at": trained.diverged_at,
        "seconds": trained.seconds,
        "seconds_per_iteration": trained.seconds / steps,
        **memory.columns(),
        "peak_resident_bytes": peak_resident(),
        "provenance": provenance(device),
    }


def sample_run(
    manifest: Path, settings: SamplingConfig, output: Path, report: Callable[[int, int], None]
) -> None:
    """Verb ``sample``: draw a run's samples; writes ``output`` and ``<stem>.json`` beside it."""
    config = RunConfig.model_validate(read_json(manifest)["config"])
    device = prepare(config.compute.device, config.compute.threads)
    model = Assembled(manifest, device)
    began = time.monotonic()
    batches = []
    for first in range(0, settings.samples, settings.batch_size):
        count = min(settings.batch_size, settings.samples - first)
        batches.append(generate_images(model, settings, first, count, config.seed))
        report(first + count, settings.samples)
    seconds = time.monotonic() - began
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    output.with_suffix(".json").unlink(missing_ok=True)
    save_tensors(output, {"images": images, "labels": labels}, {"config_hash": config.hash})
    record = {
        "run": config.identity(),
        "config_hash": config.hash,
        "settings": settings.model_dump(mode="json"),
        "trajectories": settings.samples,
        "seconds": seconds,
        "trajectories_per_second": settings.samples / seconds,
        "layer_evaluations_per_trajectory": layer_evaluations_per_trajectory(model, settings),
        **peak_memory(device),
        "provenance": provenance(device),
    }
    write_json(output.with_suffix(".json"), record)


def load_samples(path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, C, H, W] and the labels int64 [N] they were drawn for."""
    tensors = load_tensors(path)
    return tensors["images"], tensors["labels"]


def train_extractor(preset: Preset, data: Path, output: Path) -> None:
    """Verb ``extractor``: train the digits CNN and write its weights and its accuracy."""
    from .evaluation.digits_cnn import save_digits_cnn, train_digits_cnn

    device = prepare("cpu", preset.compute.threads)
    splits = [load_split(data, name) for name in ("train", "test")]
    state, report = train_digits_cnn(
        splits[0].images, splits[0].labels, splits[1].images, splits[1].labels, seed=0
    )
    save_digits_cnn(output, state)
    write_json(output.with_suffix(".json"), report | {"provenance": provenance(device)})


def score_floor(preset: Preset, data: Path, weights: Path | None, cache: Path, output: Path):
    """Verb ``floor``: score real held-out images as if they were samples."""
    from .evaluation.scoring import floor_scores

    device = prepare(preset.compute.device, preset.compute.threads)
    scores = floor_scores(preset, data, weights, cache, device)
    write_json(output, {"scores": scores, "provenance": provenance(device)})


def score_run(
    preset: Preset,
    manifest: Path,
    samples: dict[str, Path],
    data: Path,
    weights: Path | None,
    cache: Path,
    output: Path,
) -> None:
    """Verb ``evaluate``: score every set of samples of a run, and its loss on held-out images."""
    from .evaluation.scoring import sample_scores
    from .evaluation.validation import validation_losses

    began = time.monotonic()
    device = prepare(preset.compute.device, preset.compute.threads)
    model = Assembled(manifest, device)
    scores = []
    for name, path in samples.items():
        images, labels = load_samples(path)
        rows = sample_scores(preset, images, labels, data, weights, cache, device)
        scores += [{"sampling": name, **row} for row in rows]
    held_out = load_split(data, "test")
    record = {
        "run": model.manifest["run"],
        "config_hash": model.run.hash,
        "iterations": model.manifest["iterations"],
        "layer_evaluations": model.manifest["layer_evaluations"],
        "scores": scores,
        "validation": validation_losses(model, held_out, preset.evaluation),
        "seconds": time.monotonic() - began,
        "provenance": provenance(device),
    }
    write_json(output, record)
