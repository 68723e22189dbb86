"""One process at a time: a lock that the kernel drops when its holder ends, however it ends."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import MENDS, UserError


def _open(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a")
    except OSError as error:
        mend = MENDS.get(error.errno, "choose another folder")
        raise UserError(f"cannot write {path}: {error.strerror}; {mend}") from None


def hold(path: Path) -> IO[str] | None:
    """Take the lock of a file for as long as the file returned stays open.

    Returns:
        None where another process holds it. A file system without locks grants every one.

    Raises:
        UserError: the file cannot be made.
    """
    file = _open(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        pass
    return file


@contextmanager
def turn(path: Path, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Wait until no other process holds the lock, then hold it.

    Args:
        on_wait: called once where there is a wait.

    Yields:
        whether there was a wait.
    """
    file, waited = hold(path), False
    if file is None:
        on_wait()
        waited, file = True, _open(path)
        fcntl.flock(file, fcntl.LOCK_EX)
    with file:
        yield waited
