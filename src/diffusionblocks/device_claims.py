"""Which GPU of this machine a job takes: a lock a card, so that no two jobs share one.

The kernel drops a lock when its holder ends, however it ends, so a killed job leaves its card free.
A process keeps its card to the end; processes that it starts work on the same one.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import IO

from .errors import UserError

#: Environment variable that tells a job's own child processes which card it holds.
CLAIMED = "DIFFUSIONBLOCKS_GPU"
#: Seconds between two looks for a free card.
LOOK_EVERY = 1.0

#: Locks of this process, held for as long as they stay open: until it ends.
_held: list[IO[str]] = []


def lock_folder() -> Path:
    """Where the locks of this user on this machine lie."""
    return Path(tempfile.gettempdir()) / f"diffusionblocks-{os.getuid()}" / "gpus"


def lock(card: str, folder: Path) -> IO[str] | None:
    """Take a card's lock for as long as the file returned stays open; None where it is taken.

    Raises:
        UserError: the file cannot be made.
    """
    path = folder / f"{card}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose another folder with TMPDIR"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def first_free(cards: Sequence[str], folder: Path, wait: Callable[[], None]) -> tuple[int, IO[str]]:
    """Take the first free card, waiting until there is one.

    Args:
        cards: a name for every card, the same in every process.
        folder: where the locks lie.
        wait: called between two looks at cards that are all taken.

    Returns:
        place of the card in the list, and its lock.

    Raises:
        UserError: there is no card, for which it would wait in vain.
    """
    if not cards:
        raise UserError("PyTorch counts no GPU; set compute.device=cpu, or look at nvidia-smi")
    while True:
        for place, card in enumerate(cards):
            if file := lock(card, folder):
                return place, file
        wait()


def claim(
    cards: Sequence[str],
    folder: Path,
    wait: Callable[[], None] = lambda: time.sleep(LOOK_EVERY),
    environment: MutableMapping[str, str] = os.environ,
) -> int:
    """This process's card: the one that it or its parent holds, otherwise the first free one.

    Returns:
        place of the card in the list.
    """
    mine = environment.get(CLAIMED)
    if mine in cards:
        return cards.index(mine)
    place, file = first_free(cards, folder, wait)
    _held.append(file)
    environment[CLAIMED] = cards[place]
    return place
