"""A sweep in parts of a few minutes: for a machine that is lent for short times.

Does what the workflow does, run by run in the order of the preset, into the same files, and
leaves off in time; the same call goes on. Training and sampling stop wherever they are and go on
with the same bits; other jobs are short and are begun only while there is time for them.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config import RunConfig, TextRun
from ..errors import UserError
from ..status import Job, is_done

#: Share of the time that must be left for a job that cannot be stopped to be begun.
SHORT_JOB_SHARE = 0.5
#: From what is being done to what is called as report(done, in all, loss or nothing).
Reporter = Callable[[str], Callable[..., None]]


@dataclass(frozen=True)
class Piece:
    """One job of the sweep.

    Attributes:
        done: whether its output stands.
        work: does it within that many seconds; returns whether it is done.
        stops: whether it can leave off in between.
    """

    name: str
    done: Callable[[], bool]
    work: Callable[[float], bool]
    stops: bool = False


def whole(name: str, done: Callable[[], bool], work: Callable[[], None]) -> Piece:
    """A job that takes no time limit."""

    def run(seconds: float) -> bool:
        work()
        return True

    return Piece(name, done, run)


def stands(output: Path, run: RunConfig | TextRun) -> Callable[[], bool]:
    """Whether a run's output is there, whole, and from the settings of today."""
    return lambda: is_done(Job("", "", output, output, config_hash=run.hash))


def training(
    run: RunConfig | TextRun, base: Path, needed: Path, report: Reporter
) -> Iterator[Piece]:
    """The parts of a run and the manifest that joins them.

    Args:
        base: folder with ``data`` and ``runs`` of the half of the sweep that it is of.
        needed: what the run is trained for; while it stands the manifest is left alone.
    """
    from .. import jobs
    from ..files import write_json
    from ..manifest import assemble

    folder = base / "runs" / run.name
    for part in run.parts:

        def train(seconds: float, part: str = part) -> bool:
            state = base / "state" / run.name / f"{part}-{run.hash}"
            weights = folder / f"{part}.safetensors"
            label = f"{run.name} {part}"
            return jobs.train_part(run, part, base / "data", weights, state, report(label), seconds)

        yield Piece(f"{run.name} {part}", stands(folder / f"{part}.json", run), train, stops=True)

    def join(seconds: float) -> bool:
        write_json(folder / "manifest.json", assemble(run, folder))
        return True

    # Joining costs nothing, so it is done anew: a manifest may be of other settings.
    yield Piece(f"{run.name} manifest", stands(needed, run), join, stops=True)


def advance(
    pieces: Iterable[Piece],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = print,
) -> bool:
    """Do as much of a sweep as there is time for.

    Args:
        pieces: its jobs, in order.
        seconds: when to leave off.
        clock: seconds from any origin.

    Returns:
        Whether all of them are done.

    Raises:
        UserError: there is no time at all, or a job cannot be done.
    """
    if seconds <= 0:
        raise UserError(f"--seconds: found {seconds:g}; expected more than 0")
    end = clock() + seconds
    for piece in pieces:
        if piece.done():
            continue
        left = end - clock()
        if left <= 0 or (not piece.stops and left < SHORT_JOB_SHARE * seconds):
            say(f"next: {piece.name}")
            return False
        began = clock()
        over = piece.work(left)
        say(f"{piece.name}: {'done' if over else 'stopped'} after {clock() - began:.0f} s")
        if not over:
            return False
    return True
