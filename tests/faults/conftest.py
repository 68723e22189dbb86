"""What the fault tests share: a finished sweep to compare with, and the table of faults."""

import csv
import os
import platform
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import ROOT, Sweep, write_preset

#: ``named`` counts how often the job said in one line what was wrong, ``example`` is such a line.
COLUMNS = ["fault", "injected_into", "times", "named", "lost", "outcome", "example"]
ROWS: list[dict] = []
SAME_BITS = "same bits"


class Row(dict):
    """One line of the table: counts go up while a test runs."""

    def hit(self, line: str = "") -> None:
        """A fault was injected; ``line`` is what the job said of it."""
        self["times"] += 1
        if line:
            self["named"] += 1
            self["example"] = self["example"] or line.removeprefix("diffusionblocks: ")


@pytest.fixture
def faults(tmp_path):
    """faults(fault, target): a context that yields the row; a test that fails shows in it.

    ``outcome`` is what a test that passes has shown.
    """

    @contextmanager
    def row(fault: str, target: str, outcome: str = SAME_BITS):
        found = Row(
            fault=fault, injected_into=target, times=0, named=0, lost=0, outcome="", example=""
        )
        ROWS.append(found)
        try:
            yield found
            assert found["lost"] == 0, f"{found['lost']} files lost"
            found["outcome"] = outcome
        except pytest.skip.Exception as skipped:
            found["outcome"] = f"not injected: {skipped.msg}"
            raise
        except BaseException:
            found["outcome"] = "FAILED"
            raise
        finally:
            found["example"] = found["example"].replace(str(tmp_path), "…")

    return row


def pytest_sessionfinish(session):
    """Write the table beside the results; DIFFUSIONBLOCKS_FAULTS names another file."""
    if not ROWS:
        return
    path = Path(os.environ.get("DIFFUSIONBLOCKS_FAULTS", ROOT / "results/faults.csv"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        rows.writeheader()
        rows.writerows({**r, "lost": "nothing" if r["lost"] == 0 else r["lost"]} for r in ROWS)
    total = sum(row["times"] for row in ROWS)
    print(f"\n{total} faults injected, table in {path} ({platform.machine()})")


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The sweep that met no fault."""
    folder = tmp_path_factory.mktemp("whole")
    sweep = Sweep(write_preset(folder / "faults.yaml"), folder / "results")
    sweep.finish()
    sweep.expected = {stage.name: sweep.contents(stage.name) for stage in sweep.stages}
    return sweep


@pytest.fixture
def sweep(whole, tmp_path):
    """A copy of that sweep, for one test to harm."""
    return whole.copy(tmp_path / "results")


@pytest.fixture
def disk(tmp_path):
    """disk(size): a file system of its own on a new folder; returns the folder. Or skip."""
    mounts = []

    def mount(options: str, *, source: str = "tmpfs", kind: tuple = ("-t", "tmpfs")) -> Path:
        folder = tmp_path / f"disk{len(mounts)}"
        folder.mkdir()
        command = ["mount", *kind, "-o", options, source, folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting needs root ({done.stderr.strip()})")
        mounts.append(folder)
        return folder

    yield mount
    for folder in mounts:
        subprocess.run(["umount", "-l", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)
