"""Writes the conda file for ``snakemake --sdm conda`` from the lock, so that pins cannot drift."""

import argparse
import re
from pathlib import Path

from packaging.markers import Marker

PYTHON = "3.11"
HEADER = """\
# Made from requirements.lock by `make lock`; do not edit. The packages are those of .venv: the
# registry's torch runs with and without a GPU.
"""


def pins(lock: str) -> list[str]:
    """Requirements ``name==version[ ; marker]`` of a lock's text, without hashes.

    Lines that can never hold on Python 3.11 are left out; a platform's marker is kept.
    """
    lines = re.findall(r"^\w[^\\\n]*==[^\\\n]*", lock, flags=re.MULTILINE)
    return [line.strip() for line in lines if _fits(line)]


def _fits(line: str) -> bool:
    _, semicolon, marker = line.partition(";")
    if not semicolon or "python_full_version" not in marker:
        return True
    linux = {"python_full_version": f"{PYTHON}.9", "python_version": PYTHON}
    return any(
        Marker(marker).evaluate(linux | {"sys_platform": system}) for system in ("linux", "darwin")
    )


def conda_file(lock: str) -> str:
    """The conda environment as YAML: Python and pip by conda, every package by pip."""
    lines = [
        "channels:",
        "  - conda-forge",
        "  - nodefaults",
        "dependencies:",
        f"  - python={PYTHON}",
        "  - pip",
        "  - pip:",
        *(f'      - "{pin}"' for pin in pins(lock)),
    ]
    return HEADER + "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lock", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    arguments.target.write_text(conda_file(arguments.lock.read_text()))
