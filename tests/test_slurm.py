"""The Slurm profile on a real Slurm, which the test starts on the loopback and stops again."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from slurm import MEND, find_slurm, slurm

from diffusionblocks.cli import main

ROOT = Path(__file__).resolve().parent.parent
#: One seed, trained long enough for a job to be stopped between two checkpoints.
OVERRIDES = ["sweep.seeds=[0]", "training.iterations=200", "training.checkpoint_every=10"]
WHOLE, SPLIT = "end_to_end-s0", "independent-B3-equal_mass-overlap0.05-l1.4.1-s0"
INTERLEAVED = "interleaved-B3-equal_mass-overlap0-s0"
#: The part of the smoke sweep that is run: a run of every method, uneven blocks, overlap.
RUNS = (WHOLE, SPLIT, INTERLEAVED)
#: What a test need not wait for as a cluster must: nothing of what jobs are told.
QUICK = (
    "--slurm-status-command squeue --slurm-init-seconds-before-status-checks 1 "
    "--seconds-between-status-checks 1 --latency-wait 10 --cores 2"
).split()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """A running Slurm of one node, with the partitions that the profile names."""
    if not find_slurm():
        pytest.skip(MEND)
    # A short path, since a socket lies in it.
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder:
        with slurm(Path(folder)) as running:
            yield running


class Sweep:
    """A sweep under the Slurm profile, in a process of its own."""

    def __init__(self, cluster, folder, *arguments, output="scores.json"):
        self.cluster, self.results = cluster, folder / "smoke"
        targets = [f"{self.results}/runs/{run}/{output}" for run in RUNS]
        folder.mkdir(exist_ok=True)
        self.log = folder / "snakemake.log"
        command = [
            sys.executable, "-m", "snakemake", "--nolock", "--profile", "profiles/slurm", *QUICK,
            "--slurm-logdir", str(folder / "slurm"), *arguments,
            "--config", "preset=smoke", f"results={folder}", f"set={' '.join(OVERRIDES)}",
            "--", *targets,
        ]  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=cluster.env, stdout=log, stderr=subprocess.STDOUT
            )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)

    def text(self):
        return self.log.read_text()

    def end(self, seconds=1200):
        """Wait for the end; the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end after {seconds} s\n{self.text()[-3000:]}") from None

    def wait(self, wanted, what, seconds=600):
        for _ in range(seconds * 5):
            if answer := wanted():
                return answer
            assert self.process.poll() is None, self.text()[-3000:]
            time.sleep(0.2)
        raise AssertionError(f"waited {seconds} s in vain for {what}\n{self.text()[-3000:]}")

    def running(self, name):
        """Number of the job whose comment names a run and part, once it is running."""

        def found():
            jobs = self.cluster.jobs("RUNNING")
            return next((number for number, comment in jobs.items() if name in comment), None)

        return self.wait(found, name)

    def stop(self, *jobs):
        """Stop the processes that train some (run, part) once they have written a checkpoint."""
        left = set(jobs)

        def all_stopped():
            for run, part in list(left):
                saved = (self.results / "state" / run).glob(f"{part}-*/state.json")
                if any(saved) and (found := self.process_of(f"--run\0{run}\0--part\0{part}\0")):
                    os.kill(found, signal.SIGSTOP)
                    left.discard((run, part))
            return not left

        self.wait(all_stopped, f"training of {left}")

    def process_of(self, words):
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = line.read_text()
            except OSError:
                continue
            if words in command and str(self.results) in command and "-c\0" not in command:
                return int(line.parent.name)
        return None

    def submissions(self, rule):
        """How many jobs of a rule were submitted."""
        comments = self.cluster.jobs().values()
        return sum(c.startswith(f"rule_{rule}_") for c in comments)


def trained_here(folder):
    """Weights of every part of the same sweep by name, trained in this process."""
    preset = ["--preset", str(ROOT / "workflow/config/presets/smoke.yaml")]
    preset += ["--set", *OVERRIDES]
    data, found = folder / "data", {}
    assert main(["data", *preset, "--output", str(data)]) == 0
    from diffusionblocks.config import load_preset

    for run in map(load_preset(Path(preset[1]), OVERRIDES).run, RUNS):
        for part in run.parts:
            output = folder / run.name / f"{part}.safetensors"
            arguments = ["--run", run.name, "--part", part, "--data", str(data)]
            arguments += ["--output", str(output), "--state", str(folder / "state")]
            assert main(["train", *preset, *arguments]) == 0
            found[f"{run.name}/{part}.safetensors"] = output.read_bytes()
    return found


def test_a_cancelled_job_does_not_change_a_bit_of_the_sweep(cluster, tmp_path):
    run, part = SPLIT, "block1"
    with Sweep(cluster, tmp_path / "cluster") as sweep:
        sweep.stop((run, part))
        number = sweep.running(f"{run}_{part}")
        cluster.run("scancel", number)
        assert sweep.end() == 0, sweep.text()[-5000:]
    text = sweep.text()
    assert f"recovered: train {run}-{part}: it was cancelled" in text
    # A job per block, and the cancelled one twice, the second time with twice the memory.
    assert sweep.submissions("train") == 6
    first, second = cluster.asked(f"{run}_{part}")
    assert second == 2 * first
    # What takes seconds goes in groups: one run's scores in one job.
    groups = {number: comment for number, comment in cluster.jobs().items() if "sample" in comment}
    assert len(groups) == len(RUNS)
    expected = trained_here(tmp_path / "here")
    assert len(expected) == 5
    for name, weights in expected.items():
        assert (sweep.results / "runs" / name).read_bytes() == weights, name
    assert len(list(sweep.results.glob("runs/*/scores.json"))) == len(RUNS)


FAULTS = {
    (WHOLE, "block0"): "the partition it was sent to does not exist",
    (SPLIT, "block0"): "it outlived its time limit",
    (SPLIT, "block1"): "it outgrew its memory limit",
    (SPLIT, "block2"): "its node went down",
}


def test_what_a_cluster_refuses_or_kills_is_named_and_the_rest_goes_on(cluster, tmp_path):
    resources = [
        f"train:slurm_partition='nowhere' if wildcards.run == '{WHOLE}' else 'cpu'",
        f"train:mem_mb=64 if wildcards.run == '{SPLIT}' and wildcards.part == 'block1' else 1500",
    ]
    arguments = ["--retries", "0", "--set-resources", *resources]
    with Sweep(cluster, tmp_path, *arguments, output="manifest.json") as sweep:
        sweep.stop((SPLIT, "block0"), (SPLIT, "block2"))
        number = sweep.running(f"{SPLIT}_block0")
        cluster.run("scontrol", "update", f"JobId={number}", "TimeLimit=1")
        sweep.wait(lambda: cluster.states()[number] == "TIMEOUT", "the end of its time")
        number = sweep.running(f"{SPLIT}_block2")
        # The node takes with it whatever it runs: first let through what is to go on.
        whole = sweep.results / "runs" / INTERLEAVED / "manifest.json"
        sweep.wait(whole.exists, "the manifest of the run that nothing befalls")
        cluster.stop_node()
        sweep.wait(lambda: cluster.states()[number] == "NODE_FAIL", "the loss of the node")
        cluster.slurmd()
        assert sweep.end() == 1
    text = sweep.text()
    lines = [line for line in text.splitlines() if line.startswith("failed: train ")]
    assert len(lines) == len(FAULTS), text[-5000:]
    for (run, part), cause in FAULTS.items():
        (line,) = (line for line in lines if f" {run}-{part}: " in line)
        assert cause in line and "start the same command again" in line
    assert "Traceback" not in text
    finished = [p.parent.name for p in sweep.results.glob("runs/*/manifest.json")]
    assert finished == [INTERLEAVED]
