"""Files that are either whole or absent: written beside their place, synced, then renamed."""

import glob
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import MENDS, UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` to write to; it takes the name on success only.

    The sibling carries machine and process id, so two processes that write the same file
    cannot mix their halves; whichever renames last wins with a whole file. What killed
    processes of this machine left beside it is removed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _remove_leftovers(path)
    except OSError as error:
        mend = MENDS.get(error.errno, "free space or choose another folder")
        raise UserError(f"cannot write {path}: {error.strerror or error}; {mend}") from error
    finally:
        # A folder that cannot be written to has its own message already.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _machine() -> str:
    """A name for this machine that a file name may hold."""
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:40]


def _alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _remove_leftovers(path: Path) -> None:
    """Remove halves of ``path`` that processes of this machine left when they were killed."""
    prefix = f".{path.name}.{_machine()}-"
    for half in path.parent.glob(f"{glob.escape(prefix)}*.part"):
        pid = re.match(r"\d+", half.name.removeprefix(prefix))
        if pid and not _alive(int(pid[0])):
            delete(half)


def delete(path: Path) -> None:
    """Delete a file or a folder; what is gone already is no fault."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON whole; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; NaN and infinities are refused, since JSON has none.

    Raises:
        UserError: the file is missing or not JSON (truncated, say).
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, parse_constant=_no_number)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the step that makes it") from None
    # ValueError: bytes that are no text, text that is no JSON, numbers of too many digits.
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not whole JSON ({error}); delete it and run the same command again"
        ) from None


def _no_number(name: str) -> None:
    raise ValueError(f"found {name}, expected a number")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 digest of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
