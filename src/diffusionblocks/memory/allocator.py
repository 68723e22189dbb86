"""The allocator's own peak: profiler memory records on the CPU, its counters on CUDA."""

import os
from typing import Any

import torch
from torch.autograd import profiler


class AllocatorPeak:
    """Context manager: most bytes that PyTorch's allocator held, counted from the entry.

    On the CPU the profiler writes down every allocation and release; freeing what was there
    before the entry is not counted. On CUDA the allocator counts by itself, the whole process's.

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
        held = self.peak = 0
        for event in self._profile.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                self.peak = max(self.peak, held)
