"""Faults of a whole sweep: two Snakemakes on one folder, killed ones, notebooks that raise.

The workflow runs in a copy of the checkout, so that a test may break a notebook. What is compared
are all weights, samples and tables, with a sweep that met no fault and ran job after job, without
Snakemake; so this also shows that one and two cores give the same bits.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from harness import PRESET, ROOT, content

COPIED = ["Snakefile", "workflow", "profiles", "notebooks", "src", "envs"]
#: Tables whose numbers are computed; the others hold times and memory.
COMPUTED = "scores floors validation_loss curves".split()
#: Longest that one call of Snakemake may take, in seconds: a hang is a fault as well.
PATIENCE = 900


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    preset = folder / "workflow/config/presets/faults.yaml"
    preset.write_text(yaml.safe_dump(PRESET))
    return folder


class Snakemake:
    """One call in a process group of its own, so that its jobs may be killed with it.

    Args:
        arguments: options first, as ``--config`` takes whatever follows it up to the next option;
            then ``--`` and the targets.
    """

    def __init__(self, checkout: Path, results: Path, *arguments: str, cores: int = 2):
        self.log = results.with_name(f"{results.name}-snakemake.txt")
        # A descriptor of its own: two calls on one folder must not write one log.
        while self.log.exists():
            self.log = self.log.with_name(f"_{self.log.name}")
        command = [sys.executable, "-m", "snakemake", "--cores", str(cores)]
        command += ["--config", "preset=faults", f"results={results}", *arguments]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=checkout, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> tuple[int, str]:
        """Exit code, and what it printed."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"Snakemake hangs: {self.log.read_text()[-2000:]}") from None
        return code, self.log.read_text(errors="replace")

    def kill(self, everything: bool = True) -> None:
        """SIGKILL, with or without its jobs."""
        send = os.killpg if everything else os.kill
        send(self.process.pid, signal.SIGKILL)
        self.process.wait()


def snakemake(checkout, results, *arguments, cores=2):
    return Snakemake(checkout, results, *arguments, cores=cores).wait()


def found(results: Path) -> dict[str, str]:
    """Everything a sweep computes: file → digest, times left out."""
    files = sorted((results / "runs").glob("*/*.safetensors"))
    files += [results / f"tables/{name}.csv" for name in COMPUTED]
    return {str(f.relative_to(results)): content(f) if f.exists() else "missing" for f in files}


def lost(results: Path, whole: Path) -> int:
    """Files that are missing or differ from those of the sweep that met no fault."""
    expected, actual = found(whole), found(results / "faults")
    assert expected.keys() >= actual.keys() and "missing" not in expected.values()
    return sum(actual.get(name) != digest for name, digest in expected.items())


def jobs_under(results: Path, verb: str) -> list[int]:
    """Processes of a verb of the command line that work on these results."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # gone meanwhile
            continue
        # The job itself, neither Snakemake nor the shell whose command names it.
        if words[1:4] == ["-m", "diffusionblocks", verb] and any(str(results) in w for w in words):
            pids.append(int(process.name))
    return pids


def wait_for(condition, process: Snakemake):
    """What the condition gives once it holds."""
    deadline = time.monotonic() + PATIENCE
    while not (holds := condition()):
        assert process.process.poll() is None, process.log.read_text()[-2000:]
        assert time.monotonic() < deadline, process.log.read_text()[-2000:]
        time.sleep(0.01)
    return holds


@pytest.mark.parametrize("cores", [1, 2])
def test_two_on_one_folder(checkout, whole, faults, tmp_path, cores):
    """The second is refused; the first ends with the same bits, on one core and on two."""
    results = tmp_path / "results"
    with faults("two snakemake at once", f"a sweep on {cores} cores") as row:
        first = Snakemake(checkout, results, "--", "tables", cores=cores)
        wait_for((results / "faults/data/dataset.json").exists, first)
        code, text = snakemake(checkout, results, "--", "tables")
        lines = [x for x in text.splitlines() if x.startswith("diffusionblocks: ")]
        assert code == 2 and len(lines) == 1 and "another snakemake works on" in lines[0]
        assert "Traceback" not in text
        row.hit(lines[0])
        code, text = first.wait()
        assert code == 0, text[-3000:]
        row["lost"] = lost(results, whole.root)


def untrained(whole, results: Path) -> Path:
    """A copy of the sweep that has its data only."""
    shutil.copytree(whole.root / "data", results / "faults/data")
    return results


def test_killed_with_and_without_its_jobs(checkout, whole, faults, tmp_path):
    results = untrained(whole, tmp_path / "results")
    rng = random.Random(os.environ.get("DIFFUSIONBLOCKS_FAULT_SEED", "0"))
    with faults("SIGKILL of a job", "train, under snakemake") as row:
        sweep = Snakemake(checkout, results, "--until", "train", "--", "tables")
        (pid, *_) = wait_for(lambda: jobs_under(results, "train"), sweep)
        os.kill(pid, signal.SIGKILL)
        code, text = sweep.wait()
        line = next(x for x in text.splitlines() if "a job was killed by signal 9" in x)
        assert code == 1
        row.hit(line)
    with faults("SIGKILL of snakemake", "a sweep") as row:
        for everything, verb in ((True, "train"), (False, "train"), (True, "sample")):
            sweep = Snakemake(checkout, results, "--", "tables")
            wait_for(lambda verb=verb: jobs_under(results, verb), sweep)
            time.sleep(rng.uniform(0, 2))
            if sweep.process.poll() is None:
                sweep.kill(everything)
                row.hit()
        assert row["times"] >= 2
        code, text = snakemake(checkout, results, "--", "tables")
        assert code == 0, text[-3000:]
        row["lost"] = lost(results, whole.root)


def test_a_notebook_that_raises(checkout, whole, faults, tmp_path):
    results, notebook = tmp_path / "results", checkout / "notebooks/image_quality.ipynb"
    shutil.copytree(whole.root, results / "faults")
    original, page = notebook.read_bytes(), results / "faults/report/image_quality.html"
    with faults("notebook raises", notebook.name) as row:
        broken = json.loads(original)
        _, cell, *_ = (c for c in broken["cells"] if c["cell_type"] == "code")
        cell["source"] = ["raise RuntimeError('broken on purpose')"]
        notebook.write_text(json.dumps(broken))
        code, text = snakemake(checkout, results, "--", "notebook")
        assert code == 1
        assert "RuntimeError: broken on purpose" in text, text[-3000:]
        row.hit("RuntimeError: broken on purpose")
        assert not page.exists(), "a page of a broken notebook"
        notebook.write_bytes(original)
        code, text = snakemake(checkout, results, "--", "notebook")
        assert code == 0, text[-3000:]
        assert "broken on purpose" not in page.read_text()
        row["lost"] = lost(results, whole.root)


def test_results_that_cannot_be_written(checkout, whole, faults, disk):
    """Snakemake itself, before any job: one line."""
    with faults("read-only results", "snakemake") as row:
        folder = disk("size=64m")
        results = untrained(whole, folder / "results")
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        command = [sys.executable, "-m", "snakemake", "--cores", "1", "tables"]
        done = subprocess.run(
            [*command, "--config", "preset=faults", f"results={results}"],
            cwd=checkout, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        lines = [x for x in done.stderr.splitlines() if x.startswith("diffusionblocks: ")]
        assert done.returncode == 2 and len(lines) == 1, done.stderr[-2000:]
        assert "Read-only" in lines[0] and "Traceback" not in done.stderr
        row.hit(lines[0])
