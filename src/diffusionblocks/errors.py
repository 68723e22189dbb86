"""The one exception that a user is meant to read, and the words for a machine that fails."""

import errno

#: Longest message, in characters; of a longer one the beginning and the mend at its end stay.
LONGEST = 600
#: What the machine, not the suite, got wrong: error number → the mend.
MENDS = {
    errno.ENOSPC: "free space and run the same command again",
    errno.EDQUOT: "free space in your quota and run the same command again",
    errno.EROFS: "make the folder writable or choose another",
    errno.EACCES: "change its permissions or choose another folder",
    errno.EPERM: "change its permissions or choose another folder",
    errno.ENOENT: "run the step that makes it",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "name a folder, not a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "check the disk and run the same command again",
}


def one_line(text: str) -> str:
    """Text in one line of printable characters; what a terminal would obey is escaped."""
    joined = " ".join(text.split())
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in joined)
    if len(shown) > LONGEST:
        shown = f"{shown[: LONGEST // 2]} … {shown[-LONGEST // 2 :]}"
    return shown


class UserError(Exception):
    """Something the user can mend: one line with what was found, what was expected, the mend.

    The command line prints it without a traceback and exits with code 2. Anything
    else that is raised is a fault of the suite and keeps its traceback.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def of_the_machine(error: Exception) -> UserError | None:
    """A full or read-only disk, a missing file or too little memory in one line; else None."""
    if isinstance(error, OSError) and error.errno in MENDS:
        name = "" if error.filename is None else f" {error.filename}"
        return UserError(f"cannot use{name}: {error.strerror}; {MENDS[error.errno]}")
    # PyTorch's own class is told by its name: nothing here imports PyTorch.
    lacking = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    # PyTorch's CPU allocator raises a plain RuntimeError, in two wordings.
    refused = ("not enough memory", "can't allocate memory")
    if lacking or (isinstance(error, RuntimeError) and any(x in str(error) for x in refused)):
        return UserError(
            "out of memory; lower training.batch_size or sampling.*.batch_size, raise "
            "training.accumulation, or give the job more memory and run the same command again"
        )
    return None
