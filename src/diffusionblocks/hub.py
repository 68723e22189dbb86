"""Names of what the Hugging Face hub holds: owner/name@commit, or a local path.

A branch of the hub can move; a commit cannot. So every model and tokeniser is named with its
commit, and what a preset loads today is what it loads next year.
"""

import re

#: owner/name@commit, the commit whole.
PINNED = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")
#: How a local file or folder begins, so that no folder is mistaken for a name of the hub.
LOCAL = ("/", "./", "../")


def pinned(name: str) -> tuple[str, str | None]:
    """Name and commit; a local path has no commit.

    Raises:
        ValueError: neither a path nor a name with a whole commit.
    """
    if name.startswith(LOCAL):
        return name, None
    found = PINNED.fullmatch(name)
    if found is None:
        raise ValueError(
            f"{name!r} is neither owner/name@COMMIT with the 40 digits of a commit of the hub nor "
            "a path that begins with / or ./ or ../; write one of them"
        )
    return found[1], found[2]
