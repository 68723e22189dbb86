"""Data parallelism: processes that share a batch train as one process does."""

import csv
import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_preset import TINY

from diffusionblocks.cli import main
from diffusionblocks.config import load_preset
from diffusionblocks.errors import UserError

RUN = "independent-B2-equal_mass-overlap0-s0"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


class Job:
    """One training job, alone or on two processes."""

    def __init__(self, preset, data, folder):
        self.preset, self.data, self.folder = preset, data, folder
        self.output, self.state = folder / "block1.safetensors", folder / "state"

    def arguments(self, *overrides):
        return [
            "train", "--preset", str(self.preset), "--set", *overrides, "--run", RUN,
            "--part", "block1", "--data", str(self.data), "--output", str(self.output),
            "--state", str(self.state),
        ]  # fmt: skip

    def alone(self, *overrides):
        assert main(self.arguments("training.accumulation=2", *overrides)) == 0
        return self

    def together(self, *overrides, program=()):
        start = ["--", *program] if program else ["-m", "--", "diffusionblocks"]
        command = [sys.executable, *TORCHRUN, *start, *self.arguments(*overrides)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    def curve(self):
        rows = csv.DictReader((self.folder / "block1-curve.csv").open())
        return torch.tensor([[float(r["loss"]), float(r["grad_norm"])] for r in rows])


@pytest.fixture
def job(tmp_path, digits):
    preset = tmp_path / "tiny.yaml"
    preset.write_text(yaml.safe_dump(TINY))

    def make(name):
        (tmp_path / name).mkdir()
        return Job(preset, digits, tmp_path / name)

    return make


#: Rank 1 refuses to write; rank 0 dies at its second checkpoint. Arguments are the verb's.
FAULTY = """
import os, sys
from diffusionblocks import files
from diffusionblocks.training import loop
kept, saved = loop.save_checkpoint, []
def save(*arguments):
    kept(*arguments)
    saved.append(1)
    if len(saved) == 2 and os.environ.get("DIES"):
        os._exit(1)
loop.save_checkpoint = save
if os.environ["RANK"] != "0":
    def refuse(*arguments):
        raise AssertionError("a follower writes")
    files.write_json = files.write_text = files.atomic_path = refuse
    loop.save_checkpoint = loop.forget = refuse
from diffusionblocks.cli import main
sys.exit(main())
"""


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_batch(job, tmp_path):
    alone, two = job("alone").alone(), job("two")
    done = two.together("compute.processes=2")
    assert done.returncode == 0, done.stderr
    assert (alone.curve() - two.curve()).abs().max() < 1e-5
    assert len(two.curve()) == 8
    one, other = load_file(alone.output), load_file(two.output)
    assert max((one[name] - other[name]).abs().max() for name in one) < 1e-5
    record = json.loads((two.folder / "block1.json").read_text())
    assert record["config"]["compute"]["processes"] == 2
    # It is one job: what it says of itself does not count its processes' work twice.
    same = json.loads((alone.folder / "block1.json").read_text())
    assert record["blocks"] == same["blocks"] and record["parameters"] == same["parameters"]


@pytest.mark.slow
def test_only_the_first_process_writes_and_a_killed_job_resumes(job, tmp_path, monkeypatch):
    whole, killed = job("whole"), job("killed")
    assert whole.together("compute.processes=2").returncode == 0
    program = tmp_path / "faulty.py"
    program.write_text(FAULTY)
    monkeypatch.setenv("DIES", "1")
    done = killed.together("compute.processes=2", program=[program])
    assert done.returncode != 0 and "a follower writes" not in done.stderr
    assert json.loads((killed.state / "state.json").read_text())["step"] == 6
    assert not killed.output.exists()
    monkeypatch.delenv("DIES")
    done = killed.together("compute.processes=2", program=[program])
    assert done.returncode == 0, done.stderr
    assert killed.output.read_bytes() == whole.output.read_bytes()
    assert not killed.state.exists()


@pytest.mark.slow
def test_another_number_of_processes_is_refused_in_one_line(job):
    one = job("one")
    done = one.together()
    assert done.returncode != 0
    assert "set compute.processes=2" in done.stderr
    assert not one.output.exists()


def test_processes_that_were_not_started_are_missed(job, capsys):
    assert main(job("one").arguments("compute.processes=2")) == 2
    assert "torchrun --nproc-per-node 2" in capsys.readouterr().err


def test_a_batch_must_divide_and_one_process_changes_no_hash(tiny_file):
    plain = load_preset(tiny_file).runs()[0]
    assert load_preset(tiny_file, ["compute.processes=1"]).runs()[0].hash == plain.hash
    assert load_preset(tiny_file, ["compute.processes=2"]).runs()[0].hash != plain.hash
    with pytest.raises(UserError, match="16 does not divide into 3 processes"):
        load_preset(tiny_file, ["compute.processes=3"])
