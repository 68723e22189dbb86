"""Measuring: the same step for real, each point in a fresh process, by the allocator's own count.

A server process imports PyTorch once and forks a fresh process for every point, so that no point
inherits another's memory and none pays for an import.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import cycle, islice
from multiprocessing import get_context
from typing import Any

import torch

from ..devices import prepare
from ..errors import UserError
from .allocator import AllocatorPeak
from .point import Point
from .rehearsal import Rehearsal


def measure_here(
    point: Point, device: torch.device, timed_steps: int, clock=time.perf_counter
) -> dict[str, Any]:
    """Run a point's steps in this process.

    Args:
        timed_steps: further steps, of which the fastest is taken, without the profiler.

    Returns:
        measured_bytes, measured_kind, reserved_bytes (CUDA), seconds_per_step, device.
    """
    with AllocatorPeak(device) as allocator:
        rehearsal = Rehearsal(point, device)
        for block in rehearsal.blocks:
            rehearsal.step(block)
    seconds = []
    for block in islice(cycle(point.part.blocks), timed_steps):
        began = clock()
        rehearsal.step(block)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - began)
    return {
        "measured_bytes": allocator.peak,
        "measured_kind": f"{device.type} allocator",
        "reserved_bytes": allocator.reserved,
        "seconds_per_step": min(seconds, default=None),
        "device": device.type,
    }


def fits_cuda(planned: int) -> bool:
    """Whether there is CUDA with room for a planned peak and a tenth more, for its rounding."""
    return torch.cuda.is_available() and 1.1 * planned < torch.cuda.mem_get_info()[0]


def in_fresh_processes(
    work: Callable[..., dict[str, Any]], calls: Iterable[tuple[str, tuple]]
) -> Iterator[dict[str, Any]]:
    """Call a function of a module in a new process a call, one after another.

    Args:
        calls: what to call it in messages, and the arguments, of every call.

    Raises:
        UserError: a call ran out of memory, or raised one itself.
    """
    fresh = get_context("forkserver")
    fresh.set_forkserver_preload([__name__])
    for name, arguments in calls:
        try:
            with ProcessPoolExecutor(1, mp_context=fresh) as pool:
                yield pool.submit(work, *arguments).result()
        except (BrokenProcessPool, torch.OutOfMemoryError):
            raise UserError(
                f"measuring {name} ran out of this machine's memory; plan it instead, or lower "
                "the batch"
            ) from None


def _measure(point: Point, device: str, threads: int, timed_steps: int) -> dict[str, Any]:
    return measure_here(point, prepare(device, threads), timed_steps)


def measure(
    points: Iterable[Point], device: str, threads: int, timed_steps: int
) -> Iterator[dict[str, Any]]:
    """Measure every point in a process of its own, one after another.

    Args:
        device: auto, cpu or cuda.
        threads: of each process.
        timed_steps: see :func:`measure_here`.

    Raises:
        UserError: the device is missing, or a point does not fit this machine.
    """
    calls = ((point.title, (point, device, threads, timed_steps)) for point in points)
    return in_fresh_processes(_measure, calls)
