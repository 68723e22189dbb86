"""The verbs of the command line, from files to files, and what they say of bad input."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from diffusionblocks.blocks import Assembled
from diffusionblocks.cli import main
from diffusionblocks.generate import generate_images, layer_evaluations_per_trajectory
from diffusionblocks.manifest import layer_evaluations
from diffusionblocks.verbs import Progress


class Sweep:
    """Runs verbs on one folder, as the workflow's rules do."""

    def __init__(self, preset, data, folder):
        self.preset, self.data, self.folder = preset, data, folder

    def __call__(self, verb, *arguments, overrides=()):
        selected = ["--preset", str(self.preset)]
        if overrides:
            selected += ["--set", *overrides]
        return main([verb, *selected, *map(str, arguments)])

    def path(self, run, name):
        return self.folder / run / name

    def train(self, run, part, overrides=()):
        return self("train", *self.train_arguments(run, part), overrides=overrides)

    def train_arguments(self, run, part):
        output = self.path(run, f"{part}.safetensors")
        state = self.folder / "state" / run / part
        return [
            "--run", run, "--part", part, "--data", self.data, "--output", output, "--state", state
        ]  # fmt: skip

    def assemble(self, run):
        manifest = self.path(run, "manifest.json")
        return self("assemble", "--run", run, "--parts", self.folder / run, "--output", manifest)


@pytest.fixture
def sweep(tiny_file, digits, tmp_path):
    return Sweep(tiny_file, digits, tmp_path / "runs")


INDEPENDENT = "independent-B2-equal_mass-overlap0-s0"
INTERLEAVED = "interleaved-B3-equal_mass-overlap0-s0"


def read(path):
    return json.loads(path.read_text())


def one_line(capsys):
    err = capsys.readouterr().err.strip().splitlines()
    return [line for line in err if line.startswith("diffusionblocks: ")][-1]


@pytest.mark.parametrize(
    ("run", "parts"),
    [("end_to_end-s0", 1), (INDEPENDENT, 2), (INTERLEAVED, 1)],
)
def test_from_training_to_scores(sweep, tiny, run, parts, tmp_path):
    names = tiny().run(run).parts
    assert len(names) == parts
    for part in names:
        assert sweep.train(run, part) == 0
    assert sweep.assemble(run) == 0
    manifest = sweep.path(run, "manifest.json")
    samples = sweep.path(run, "samples-plain.safetensors")
    assert sweep("sample", "--manifest", manifest, "--sampling", "plain", "--output", samples) == 0
    found = load_file(samples)
    assert found["images"].shape == (24, 1, 8, 8) and found["images"].dtype == torch.uint8
    assert found["labels"].tolist() == [i % 10 for i in range(24)]
    record = read(samples.with_suffix(".json"))
    assert record["trajectories"] == 24 and record["seconds"] > 0

    weights = tmp_path / "digits_cnn.safetensors"
    assert sweep("extractor", "--data", sweep.data, "--output", weights) == 0
    assert read(weights.with_suffix(".json"))["test_accuracy"] > 0.95
    scores, cache = sweep.path(run, "scores.json"), tmp_path / "cache"
    common = ["--data", sweep.data, "--cache", cache, "--extractor-weights", weights]
    assert sweep("evaluate", "--manifest", manifest, "--samples", f"plain={samples}", *common,
                 "--output", scores) == 0  # fmt: skip
    result = read(scores)
    metrics = {(s["metric"], s["split"]) for s in result["scores"]}
    assert metrics == {
        *((m, s) for m in ("fid", "kid", "precision", "recall") for s in ("train", "test")),
        ("label_accuracy", ""),
        ("nearest_train_distance", "train"),
        ("nearest_train_distance_ratio", "train"),
    }
    assert [v["band"] for v in result["validation"]] == list(range(6))
    assert result["layer_evaluations"] == 8 * 16 * 6
    assert result["provenance"]["packages"]["torch"]

    assert sweep("floor", *common, "--output", tmp_path / "floor.json") == 0
    floor = {(s["metric"], s["split"]): s["value"] for s in read(tmp_path / "floor.json")["scores"]}
    generated = {(s["metric"], s["split"]): s["value"] for s in result["scores"]}
    # Eight updates make noise, not digits: real images must score far better.
    for split in ("train", "test"):
        assert floor["fid", split] < 0.5 * generated["fid", split]
    assert floor["label_accuracy", ""] > 0.9 > generated["label_accuracy", ""]
    assert floor["nearest_train_distance_ratio", "train"] == pytest.approx(1)


def test_a_trained_part_describes_itself(sweep, tiny):
    assert sweep.train(INDEPENDENT, "block1") == 0
    record = read(sweep.path(INDEPENDENT, "block1.json"))
    run = tiny().run(INDEPENDENT)
    assert record["config_hash"] == run.hash and record["run"]["blocks"] == 2
    (block,) = record["blocks"]
    assert (block["block"], block["first_layer"], block["layers"]) == (1, 3, 3)
    assert block["sigma_lo"] == 0.002 and block["layer_evaluations"] * 2 == layer_evaluations(run)
    rows = list(csv.DictReader(sweep.path(INDEPENDENT, "block1-curve.csv").open()))
    assert [int(r["iteration"]) for r in rows] == list(range(1, 9))
    assert all(float(r["loss"]) > 0 and float(r["grad_norm"]) > 0 for r in rows)
    assert not (sweep.folder / "state" / INDEPENDENT / "block1").exists()


def test_samples_do_not_depend_on_the_batch(sweep, tiny):
    for part in ("block0", "block1"):
        sweep.train(INDEPENDENT, part)
    sweep.assemble(INDEPENDENT)
    model = Assembled(sweep.path(INDEPENDENT, "manifest.json"), torch.device("cpu"))
    settings = tiny().sampling["plain"]
    whole, labels = generate_images(model, settings, 0, 12, seed=0)
    parts = [generate_images(model, settings, first, 4, seed=0) for first in (0, 4, 8)]
    again = torch.cat([images for images, _ in parts])
    assert torch.equal(labels, torch.cat([part_labels for _, part_labels in parts]))
    # Rounding may differ with the batch; one grey level of 256 is what that can move.
    assert (whole.int() - again.int()).abs().max() <= 1
    assert layer_evaluations_per_trajectory(model, settings) == 6 * 3


def test_guidance_doubles_the_cost_and_one_block_divides_it(sweep, tiny):
    run = "end_to_end-s0"
    sweep.train(run, "block0")
    sweep.assemble(run)
    model = Assembled(sweep.path(run, "manifest.json"), torch.device("cpu"))
    plain = tiny().sampling["plain"]
    assert layer_evaluations_per_trajectory(model, plain) == 6 * 6
    guided = plain.model_copy(update={"guidance": 2.0})
    assert layer_evaluations_per_trajectory(model, guided) == 2 * 6 * 6
    heun = plain.model_copy(update={"solver": "heun"})
    assert layer_evaluations_per_trajectory(model, heun) == 11 * 6


def test_the_same_command_resumes_a_killed_job(sweep, tiny_file):
    """A real SIGKILL in the middle of a real process; the bits are those of one never killed."""
    overrides = ["training.iterations=400", "training.checkpoint_every=20"]
    arguments = sweep.train_arguments("end_to_end-s0", "block0")
    command = [sys.executable, "-m", "diffusionblocks", "train", "--preset", str(tiny_file),
               "--set", *overrides, *map(str, arguments)]  # fmt: skip
    state = sweep.folder / "state" / "end_to_end-s0" / "block0"
    output = sweep.path("end_to_end-s0", "block0.safetensors")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (state / "state.json").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert (state / "state.json").exists() and not output.exists()
    assert subprocess.run(command, stderr=subprocess.DEVNULL, timeout=120).returncode == 0
    resumed = output.read_bytes()
    output.unlink()
    assert sweep.train("end_to_end-s0", "block0", overrides) == 0
    assert output.read_bytes() == resumed


def test_parts_of_other_settings_are_not_assembled(sweep, capsys):
    sweep.train(INDEPENDENT, "block0", ["training.iterations=4"])
    sweep.train(INDEPENDENT, "block1")
    assert sweep.assemble(INDEPENDENT) == 2
    assert "was trained with configuration" in one_line(capsys)
    assert not sweep.path(INDEPENDENT, "manifest.json").exists()


def test_damaged_weights_are_not_sampled(sweep, capsys):
    run = "end_to_end-s0"
    sweep.train(run, "block0")
    sweep.assemble(run)
    weights = sweep.path(run, "block0.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4])
    manifest, output = sweep.path(run, "manifest.json"), sweep.path(run, "s.safetensors")
    assert sweep("sample", "--manifest", manifest, "--sampling", "plain", "--output", output) == 2
    assert "differs from its digest" in one_line(capsys)
    assert not output.exists()
    assert sweep.assemble(run) == 2
    assert "differs from its digest" in one_line(capsys)


def test_a_preset_that_changed_meanwhile_is_refused(sweep, capsys):
    arguments = sweep.train_arguments("end_to_end-s0", "block0")
    assert sweep("train", *arguments, "--config-hash", "0123456789abcdef") == 2
    assert "the preset changed meanwhile" in one_line(capsys)


def test_unknown_names_are_refused(sweep, capsys, tmp_path):
    assert sweep("train", *sweep.train_arguments("end_to_end-s9", "block0")) == 2
    assert "did you mean 'end_to_end-s0'" in one_line(capsys)
    assert sweep("train", *sweep.train_arguments("end_to_end-s0", "block1")) == 2
    assert "has no part 'block1'" in one_line(capsys)
    arguments = ["--manifest", tmp_path / "m.json", "--output", tmp_path / "o.safetensors"]
    assert sweep("sample", *arguments, "--sampling", "fast") == 2
    assert "expected one of ['plain']" in one_line(capsys)
    assert sweep("sample", *arguments, "--sampling", "plain") == 2
    assert "does not exist" in one_line(capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda_is_refused(sweep, capsys):
    arguments = sweep.train_arguments("end_to_end-s0", "block0")
    assert sweep("train", *arguments, overrides=["compute.device=cuda"]) == 2
    assert "set compute.device=cpu" in one_line(capsys)


def test_runs_lists_the_sweep(sweep, capsys, tiny):
    assert sweep("runs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [r.name for r in tiny().runs()]
    assert lines[1].split()[2:] == ["block0", "block1"]


def test_progress_is_plain_lines_without_a_terminal(capsys):
    now = [0.0]
    show = Progress("run", "steps", clock=lambda: now[0])
    for done in (50, 100, 150, 200):
        now[0] += 6
        show(done, 200, 0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "run: 100/200 steps, loss 0.5, 8.33 steps/s",
        "run: 200/200 steps, loss 0.5, 8.33 steps/s",
    ]


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    show = Progress("run", "steps")
    show(50, 100, 0.25)
    show(100, 100, 0.125)
    text = capsys.readouterr().err
    assert "100/100" in text and "loss=0.125" in text
