"""The allocator's own peak: profiler memory records on the CPU, its counters on CUDA."""

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import profiler


class AllocatorPeak:
    """Context manager: most bytes that PyTorch's allocator held, counted from the entry.

    On the CPU the profiler writes down every allocation and release. On CUDA the allocator counts
    by itself, the whole process's.

    Attributes:
        peak: bytes, known after the exit.
        reserved: bytes that the CUDA allocator took from the driver; None on the CPU.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.peak: int | None = None
        self.reserved: int | None = None

    def __enter__(self) -> "AllocatorPeak":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            # The profiler's library reports starts, stops and missing GPUs on standard error.
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
            self._profile = profiler.profile(use_kineto=True, profile_memory=True)
            self._profile.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak = torch.cuda.max_memory_allocated(self.device)
            self.reserved = torch.cuda.max_memory_reserved(self.device)
            return
        self._profile.__exit__(*exception)
        self.peak = _highest(self._profile.kineto_results.experimental_event_tree())


def _highest(roots: list) -> int:
    """Most bytes held at once, from the profiler's tree of events.

    Blocks are told apart by address: what was there before the profile may be freed within it.
    """
    records, pending = [], list(roots)
    while pending:
        event = pending.pop()  # the latest first; of two at one instant the later comes first
        pending += event.children
        if event.name == "[memory]":
            fields = event.extra_fields
            records.append((event.start_time_ns, -len(records), fields.ptr, fields.alloc_size))
    held: dict[int, int] = {}
    now = highest = 0
    for _, _, address, size in sorted(records):
        if size > 0:
            held[address] = size
            now += size
            highest = max(highest, now)
        else:
            now -= held.pop(address, 0)
    return highest


class JobPeak:
    """Context manager: the allocator's peak during a training job.

    CUDA counts the whole job. On the CPU counting means profiling, which slows steps down, so
    it ends once the step's memory repeats: every block has been updated and one of them again.

    Args:
        steps: after how many steps a job's memory repeats.
        clock: seconds from any origin.

    Attributes:
        seconds: spent on reading the profiler's records, which is no part of training.
    """

    def __init__(
        self, device: torch.device, steps: int, clock: Callable[[], float] = time.monotonic
    ):
        self._allocator = AllocatorPeak(device)
        self._device = device
        self._last = steps
        self._clock = clock
        self._steps = 0
        self.seconds = 0.0

    def __enter__(self) -> "JobPeak":
        self._allocator.__enter__()
        return self

    def after_step(self) -> None:
        """To be called after every step of the job."""
        if self._allocator.peak is not None:
            return
        self._steps += 1
        if self._device.type != "cuda" and self._steps == self._last:
            began = self._clock()
            self._allocator.__exit__(None, None, None)
            self.seconds = self._clock() - began

    def __exit__(self, *exception: Any) -> None:
        if self._allocator.peak is None:
            self._allocator.__exit__(*exception)

    def columns(self) -> dict[str, Any]:
        """What a job's metrics say of its peak."""
        kind = f"{self._device.type} allocator, {self._steps} steps"
        return {"peak_memory_bytes": self._allocator.peak, "peak_memory_kind": kind}
