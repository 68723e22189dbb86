"""Samples drawn so far, batch by batch on disk, so that drawing goes on where it was stopped."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .errors import UserError
from .tensors import load_tensors, save_tensors

#: Beside the tensors of a batch: how long it took to draw them.
SECONDS = "seconds"


class DrawnBatches:
    """Batches by the number of their first sample.

    Args:
        folder: where they wait; nothing is written there unless drawing may stop.
        identity: of what they are drawn from and how; batches of another are dropped.
    """

    def __init__(self, folder: Path, identity: str):
        self._folder = folder
        self._own = folder / identity
        self._here: dict[int, dict[str, Tensor]] = {}
        if folder.is_dir():
            for other in folder.iterdir():
                if other != self._own:
                    shutil.rmtree(other)

    def _path(self, first: int) -> Path:
        return self._own / f"{first:09d}.safetensors"

    def draw(
        self,
        samples: int,
        batch_size: int,
        make: Callable[[int, int], dict[str, Tensor]],
        report: Callable[[int, int], None],
        stop_after: float | None,
        clock: Callable[[], float],
    ) -> bool:
        """Draw the batches that are missing.

        Args:
            make: from a batch's first sample and size to its tensors.
            report: called with the samples drawn, and how many there will be.
            stop_after: seconds on the clock after which to stop; None never stops.

        Returns:
            Whether all are drawn.
        """
        began = clock()
        for first in range(0, samples, batch_size):
            if self._has(first):
                continue
            if stop_after is not None and clock() - began >= stop_after:
                return False
            started, count = clock(), min(batch_size, samples - first)
            batch = make(first, count)
            self._add(first, batch, clock() - started, last=stop_after is None)
            report(first + count, samples)
        return True

    def _has(self, first: int) -> bool:
        """Whether the batch that begins with this sample is drawn and whole."""
        if first not in self._here and self._path(first).is_file():
            try:
                self._here[first] = load_tensors(self._path(first))
            except UserError:
                return False
        return first in self._here

    def _add(self, first: int, batch: dict[str, Tensor], seconds: float, last: bool) -> None:
        """Keep a batch of samples; on disk too unless this process is to draw to the last."""
        taken = torch.tensor(seconds, dtype=torch.float64)
        self._here[first] = {**batch, SECONDS: taken}
        if not last:
            save_tensors(self._path(first), self._here[first], {})

    def joined(self) -> tuple[dict[str, Tensor], float]:
        """What was added, joined in the order of the samples, and seconds of drawing."""
        batches = [self._here[first] for first in sorted(self._here)]
        joined = {key: torch.cat([b[key] for b in batches]) for key in batches[0] if key != SECONDS}
        return joined, sum(b[SECONDS].item() for b in batches)

    def forget(self) -> None:
        """Remove the batches from the disk: the samples stand as one file."""
        shutil.rmtree(self._folder, ignore_errors=True)
