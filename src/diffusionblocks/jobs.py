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
from .config import LATENT_SETS, Preset, RunConfig, SamplingConfig, digest, validated
from .data.images import load_split, prepare_images, to_uint8
from .data.latents import channels, prepare_latents, unscaled
from .data.sources import load_examples
from .devices import prepare, prepare_for
from .drawn import DrawnBatches
from .errors import UserError
from .files import sha256, write_json, write_text
from .generate import generate_images, layer_evaluations_per_trajectory
from .locks import turn
from .manifest import stands, write_part
from .memory.allocator import JobPeak
from .parts import Part, part_of
from .provenance import provenance
from .records import read_record, require_digest
from .tasks import TASKS
from .tensors import load_samples, save_tensors
from .training.loop import Trained, forget, schedule_of, train
from .training.replicas import follows, replicas

#: Rows that a training curve is averaged down to, per block.
CURVE_ROWS = 200


def prepare_data(preset: Preset, folder: Path) -> None:
    """Verb ``data``: decode the preset's data set into a folder."""
    prepare_images(preset.data, folder)


def encode_latents(preset: Preset, folder: Path, report: Callable) -> None:
    """Verb ``latents``: encode the preset's images into the folder of its data.

    Raises:
        UserError: its data set is not one of latents.
    """
    if preset.data.name not in LATENT_SETS:
        raise UserError(f"{preset.data.name} is trained on pixels; run the verb data alone")
    device = prepare_for(preset.compute)
    # One process decodes images beside the one that encodes, unless the job has a thread only.
    prepare_latents(preset.data, folder, device, preset.compute.threads - 1, report)


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
    stop_after: float | None = None,
) -> bool:
    """Verb ``train``: train one part of a run, resuming from ``state`` where it can.

    Writes ``output`` (averaged weights), its curve ``<stem>-curve.csv`` and ``<stem>.json``.
    Where another process trains the same part (the orphan of a killed sweep, say) it waits for
    that one and takes what it made.

    Args:
        stop_after: seconds of training after which to leave a checkpoint and stop.

    Returns:
        Whether the part is trained; otherwise the same call goes on with it.

    Raises:
        UserError: a part of several processes is to stop before its end.
    """
    part = part_of(run, name)
    if stop_after is not None and run.compute.processes > 1:
        raise UserError(
            f"found --stop-after with {run.compute.processes} processes, which would stop at "
            "different steps; expected one: set compute.processes=1"
        )
    if follows():  # the process that leads its data-parallel job takes the turn for all
        return _train_alone(run, part, data, output, state, report, stop_after)

    def on_wait() -> None:
        print(f"waiting for another process that trains {run.name} {name}", file=sys.stderr)

    with turn(state.with_name(f".{state.name}.lock"), on_wait) as waited:
        if waited and run.compute.processes == 1 and stands(output, run):
            return True
        return _train_alone(run, part, data, output, state, report, stop_after)


def _train_alone(
    run: RunConfig,
    part: Part,
    data: Path,
    output: Path,
    state: Path,
    report: Callable[[int, int, float], None],
    stop_after: float | None,
) -> bool:
    device = prepare_for(run.compute)
    with (
        replicas(device, run.compute.processes) as here,
        JobPeak(device, len(part.blocks) + 1) as memory,
    ):
        task = TASKS[run.task](run, data, device)

        def clock() -> float:
            return time.monotonic() - memory.seconds

        after_step, ranges = memory.after_step, task.ranges
        trained = train(run, part, task, ranges, state, clock, report, after_step, stop_after, here)
    if trained is None:
        return False
    if not here.leads:
        return True
    # Outputs of an earlier configuration must not vouch for these weights while they are replaced.
    output.with_suffix(".json").unlink(missing_ok=True)
    save_tensors(output, trained.ema, {"config_hash": run.hash})
    curve = output.with_name(f"{output.stem}-curve.csv")
    write_text(curve, curve_csv(run, part, trained.history))
    record = _part_record(run, part, task, trained, device, memory)
    write_part(output, record | {"curve_sha256": sha256(curve)})
    forget(state)
    return True


def _part_record(
    run: RunConfig, part: Part, task, trained: Trained, device: torch.device, memory: JobPeak
) -> dict[str, Any]:
    """What is known of a trained part, ready for JSON."""
    steps = len(trained.history)
    layers = {b: part.layers[b] or range(part.depth) for b in part.blocks}
    return {
        "run": run.identity(),
        "part": part.name,
        "config": run.model_dump(mode="json"),
        "config_hash": run.hash,
        run.task: task.description(),
        "blocks": [
            {
                "block": b,
                "first_layer": run.layer_ranges()[b].start,
                "layers": len(layers[b]),
                **vars(task.ranges[b]),
                "layer_evaluations": run.training.iterations
                * run.training.batch_size
                * run.positions
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


def image_decoder(images: dict[str, Any], sigma_data: float, device: torch.device):
    """From what the blocks of a manifest denoise to images uint8 [N, C, H, W].

    Raises:
        UserError: the autoencoder is missing, or another than the one trained with.
    """
    if "latents" not in images:
        return to_uint8
    from .data.autoencoder import decode, load_autoencoder, weights_digest

    space = images["latents"]
    autoencoder = load_autoencoder(space["autoencoder"], device)
    if weights_digest(autoencoder) != space["autoencoder_sha256"]:
        raise UserError(
            f"data.autoencoder: {space['autoencoder']} holds other weights than the latents were "
            "encoded with; restore them or encode and train again"
        )
    own = channels(space, device)
    return lambda y: decode(autoencoder, unscaled(y, *own, sigma_data))


def sample_run(
    manifest: Path,
    settings: SamplingConfig,
    output: Path,
    report: Callable[[int, int], None],
    stop_after: float | None = None,
) -> bool:
    """Verb ``sample``: draw a run's samples; writes ``output`` and ``<stem>.json`` beside it.

    Args:
        stop_after: seconds after which to keep the batches drawn so far and stop.

    Returns:
        Whether all samples are drawn; otherwise the same call goes on with them.
    """
    record = read_record(manifest, {"config": dict})
    config = validated(RunConfig, record["config"], manifest.name)
    device = prepare_for(config.compute)
    model = Assembled(manifest, device)
    decode = image_decoder(model.manifest["images"], config.noise.sigma_data, device)
    kept = DrawnBatches(
        output.with_name(f".{output.stem}-batches"),
        digest([sha256(manifest), settings.model_dump(mode="json")]),
    )

    def make(first: int, count: int) -> dict[str, Tensor]:
        images, labels = generate_images(model, settings, first, count, config.seed, decode)
        return {"images": images, "labels": labels}

    drawing = (settings.samples, settings.batch_size, make, report)
    if not kept.draw(*drawing, stop_after, time.monotonic):
        return False
    drawn, seconds = kept.joined()
    output.with_suffix(".json").unlink(missing_ok=True)
    save_tensors(output, drawn, {"config_hash": config.hash})
    record = {
        "run": config.identity(),
        "config_hash": config.hash,
        "sha256": sha256(output),
        "settings": settings.model_dump(mode="json"),
        "trajectories": settings.samples,
        "seconds": seconds,
        "trajectories_per_second": settings.samples / max(seconds, 1e-9),
        "layer_evaluations_per_trajectory": layer_evaluations_per_trajectory(model, settings),
        **peak_memory(device),
        "provenance": provenance(device),
    }
    write_json(output.with_suffix(".json"), record)
    kept.forget()
    return True


def train_extractor(preset: Preset, data: Path, output: Path) -> None:
    """Verb ``extractor``: train the digits CNN and write its weights and its accuracy."""
    from .evaluation.digits_cnn import save_digits_cnn, train_digits_cnn

    device = prepare("cpu", preset.compute.threads)
    splits = [load_split(data, name) for name in ("train", "test")]
    state, report = train_digits_cnn(
        splits[0].images, splits[0].labels, splits[1].images, splits[1].labels, seed=0
    )
    save_digits_cnn(output, state)
    record = report | {"sha256": sha256(output), "provenance": provenance(device)}
    write_json(output.with_suffix(".json"), record)


def score_floor(preset: Preset, data: Path, weights: Path | None, cache: Path, output: Path):
    """Verb ``floor``: score real held-out images as if they were samples."""
    from .evaluation.scoring import floor_scores

    device = prepare_for(preset.compute)
    if weights is not None:
        require_digest(weights)
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
    device = prepare_for(preset.compute)
    for file in [*samples.values(), *([] if weights is None else [weights])]:
        require_digest(file)
    model = Assembled(manifest, device)
    scores = []
    for name, path in samples.items():
        images, labels = load_samples(path)
        rows = sample_scores(preset, images, labels, data, weights, cache, device)
        scores += [{"sampling": name, **row} for row in rows]
    held_out = load_examples(model.run, data, "test")
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
