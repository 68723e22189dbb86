"""Memory and time of sampling: all blocks on the device against one, streamed from disk.

Neither depends on what the weights are, so fresh networks stand in for trained ones.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ..blocks import Assembled
from ..config import SamplingConfig
from ..devices import prepare
from ..files import write_json
from ..generate import generate_images
from ..manifest import assemble, write_part
from ..networks.dit import DiT
from ..parts import part_of
from ..tasks.images import dit_shape, noise_ranges
from ..tensors import load_tensors, save_tensors
from .allocator import AllocatorPeak
from .measure import in_fresh_processes
from .point import Point
from .streaming import Streamed

#: Where the weights are while sampling.
WEIGHTS = ("all resident", "one streamed", "one streamed, next read ahead")


def write_untrained(point: Point, folder: Path) -> Path:
    """Write a manifest of fresh networks for a point's blocks; returns its path."""
    run, images = point.run, vars(point.images)
    ranges = noise_ranges(run)
    shape = dit_shape(run.network, **images)
    for name in run.parts:
        part = part_of(run, name)
        path = folder / f"{name}.safetensors"
        save_tensors(path, DiT(shape, part.depth).state_dict(), {"config_hash": run.hash})
        blocks = [{"block": b, **vars(ranges[b])} for b in part.blocks]
        write_part(path, {"config_hash": run.hash, "images": images, "blocks": blocks})
    write_json(folder / "manifest.json", assemble(run, folder))
    return folder / "manifest.json"


def sample_here(
    point: Point, weights: str, settings: SamplingConfig, device: torch.device
) -> dict[str, Any]:
    """Sample one batch twice in this process: once for memory, once for time.

    Args:
        weights: one of :data:`WEIGHTS`.
        settings: of the sampling; one batch of ``batch_size`` is drawn.

    Returns:
        measured_bytes, parameters_bytes (held on the device), rest_bytes, host_bytes, seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_untrained(point, Path(folder))

        def model() -> Assembled:
            if weights == WEIGHTS[0]:
                return Assembled(manifest, device)
            return Streamed(manifest, device, prefetch=weights == WEIGHTS[2])

        def sample(opened: Assembled) -> None:
            with opened if isinstance(opened, Streamed) else nullcontext():
                generate_images(opened, settings, 0, settings.batch_size, 0)

        with AllocatorPeak(device) as allocator:
            sample(model())
        began = time.perf_counter()
        sample(model())  # opening included: streaming moves the reading into the sampling
        seconds = time.perf_counter() - began
        # A file a part: B of independent blocks, one of an interleaved run.
        files = [load_tensors(Path(folder) / f"{name}.safetensors") for name in point.run.parts]
        sizes = [sum(tensor.nbytes for tensor in file.values()) for file in files]
    held = sum(sizes) if weights == WEIGHTS[0] else max(sizes)
    return {
        "measured_bytes": allocator.peak,
        "measured_kind": f"{device.type} allocator",
        "parameters_bytes": held,
        "rest_bytes": allocator.peak - held,
        # What another thread reads ahead is the host's, and not among the device's peak.
        "host_bytes": max(sizes) if weights == WEIGHTS[2] else 0,
        "seconds": seconds,
        "device": device.type,
    }


def _sample(
    point: Point, weights: str, settings: SamplingConfig, device: str, threads: int
) -> dict[str, Any]:
    return sample_here(point, weights, settings, prepare(device, threads))


def inference_rows(
    points: list[Point], settings: SamplingConfig, device: str, threads: int
) -> Iterator[dict[str, Any]]:
    """One row for every point and place of the weights, each measured in a fresh process."""
    pairs = [
        (point, weights)
        for point in points
        for weights in (WEIGHTS if len(point.run.parts) > 1 else WEIGHTS[:1])
    ]
    calls = ((p.title, (p, weights, settings, device, threads)) for p, weights in pairs)
    found = in_fresh_processes(_sample, calls)
    for (point, weights), row in zip(pairs, found, strict=True):
        columns = point.columns() | {
            "weights": weights,
            "sampled": settings.batch_size,
            "steps": settings.steps,
            "solver": settings.solver,
            "guidance": settings.guidance,
        }
        yield columns | row
