"""What verbs of the command line share: progress, and the end of a job that may stop in between."""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import suppress

#: Seconds between two lines of progress where there is no terminal.
LINE_EVERY = 10.0
#: Exit code of a job that stopped at its time limit and is not done.
STOPPED = 3


class Progress:
    """A bar with loss and rate on a terminal, plain lines elsewhere."""

    def __init__(self, label: str, unit: str, clock: Callable[[], float] = time.monotonic):
        self.label, self.unit, self.clock = label, unit, clock
        self.bar = None
        self.began = self.last_line = clock()
        self.first: int | None = None

    def __call__(self, done: int, total: int, loss: float | None = None) -> None:
        """Show that ``done`` of ``total`` are done."""
        if self.first is None:
            self.first = 0 if loss is None else max(0, done - 50)
        if sys.stderr.isatty():
            self._draw(done, total, loss)
        elif done == total or self.clock() - self.last_line >= LINE_EVERY:
            self.last_line = self.clock()
            rate = (done - self.first) / max(self.clock() - self.began, 1e-9)
            shown = "" if loss is None else f", loss {loss:.4g}"
            line = f"{self.label}: {done}/{total} {self.unit}{shown}, {rate:.3g} {self.unit}/s"
            # A log on a full disk is no reason to stop.
            with suppress(OSError):
                print(line, file=sys.stderr, flush=True)

    def _draw(self, done: int, total: int, loss: float | None) -> None:
        from tqdm import tqdm

        if self.bar is None:
            self.bar = tqdm(total=total, initial=self.first, desc=self.label, unit=self.unit)
        self.bar.update(done - self.bar.n)
        if loss is not None:
            self.bar.set_postfix(loss=f"{loss:.4g}")
        if done == total:
            self.bar.close()


def stoppable(parser: argparse.ArgumentParser) -> None:
    """Let a verb's job leave off in time."""
    text = f"seconds after which to leave off; exit code {STOPPED}, the same command goes on"
    parser.add_argument("--stop-after", type=float, metavar="SECONDS", help=text)


def ended(done: bool) -> int:
    """Exit code of a job that may stop in between; says so where it did."""
    if not done:
        print("diffusionblocks: stopped in time; the same command goes on", file=sys.stderr)
    return 0 if done else STOPPED
