"""A sweep in parts of a few seconds gives the bits of one in a single go."""

import json

import pytest
import torch
from languages import LANGUAGE, write_preset

from diffusionblocks import jobs, language_jobs
from diffusionblocks.cli import main
from diffusionblocks.config import load_preset
from diffusionblocks.errors import UserError
from diffusionblocks.files import write_json
from diffusionblocks.manifest import assemble
from diffusionblocks.paper.advance import advance
from diffusionblocks.paper.image_pieces import finished_runs, image_pieces
from diffusionblocks.paper.text_pieces import finished_text_runs, text_pieces
from diffusionblocks.tensors import load_tensors
from diffusionblocks.training import loop
from diffusionblocks.verbs import STOPPED


class Clock:
    """Time that goes on by a second at every look."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def quiet(label):
    return lambda *progress: None


def same(a, b):
    a, b = load_tensors(a), load_tensors(b)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", ["end_to_end", "blockwise_interleaved"])
def test_training_in_parts_gives_the_same_bits(tiny, task_of, tmp_path, method):
    run = next(r for r in tiny().runs() if r.method == method)
    from diffusionblocks.parts import part_of

    part, task = part_of(run, run.parts[0]), task_of(run)

    def go(folder, stop_after):
        clock, tries = Clock(), 0
        while True:
            tries += 1
            done = loop.train(
                run, part, task, task.ranges, folder, clock, lambda *a: None, stop_after=stop_after
            )
            if done is not None:
                return done, tries

    whole, once = go(tmp_path / "whole", None)
    parts, tries = go(tmp_path / "parts", 3.0)
    assert once == 1 and tries > 2
    assert torch.equal(whole.history, parts.history)
    assert all(torch.equal(whole.ema[name], parts.ema[name]) for name in whole.ema)


def test_a_stopped_job_leaves_a_checkpoint_and_no_output(tiny_file, digits, tmp_path, capsys):
    command = [
        "train", "--preset", str(tiny_file), "--run", "end_to_end-s0", "--part", "block0",
        "--data", str(digits), "--output", str(tmp_path / "w.safetensors"),
        "--state", str(tmp_path / "state"),
    ]  # fmt: skip
    assert main([*command, "--stop-after", "0"]) == STOPPED
    assert "the same command goes on" in capsys.readouterr().err
    assert json.loads((tmp_path / "state/state.json").read_text())["step"] == 1
    assert not (tmp_path / "w.safetensors").exists()
    assert main(command) == 0
    assert (tmp_path / "w.json").exists() and not (tmp_path / "state").exists()


@pytest.fixture
def trained(tiny, digits, tmp_path):
    preset = tiny("training.iterations=2", "sampling.plain.batch_size=5")
    run = preset.run("end_to_end-s0")
    folder = tmp_path / "run"
    jobs.train_part(
        run, "block0", digits, folder / "block0.safetensors", tmp_path / "s", lambda *a: None
    )
    write_json(folder / "manifest.json", assemble(run, folder))
    return preset, folder


def test_sampling_in_parts_gives_the_same_bits(trained, monkeypatch):
    preset, folder = trained
    manifest, settings = folder / "manifest.json", preset.sampling["plain"]
    assert jobs.sample_run(manifest, settings, folder / "whole.safetensors", lambda *a: None)
    monkeypatch.setattr(jobs.time, "monotonic", Clock())
    output = folder / "parts.safetensors"
    tries = 1
    while not jobs.sample_run(manifest, settings, output, lambda *a: None, 4.0):
        assert not output.exists()
        tries += 1
    assert tries > 1
    same(folder / "whole.safetensors", output)
    record = json.loads(output.with_suffix(".json").read_text())
    assert record["trajectories"] == settings.samples and record["seconds"] > 0
    assert not list(folder.glob(".*")), "batches of finished samples are removed"


def test_batches_of_other_settings_are_dropped(trained, monkeypatch):
    preset, folder = trained
    manifest, settings = folder / "manifest.json", preset.sampling["plain"]
    monkeypatch.setattr(jobs.time, "monotonic", Clock())
    output = folder / "parts.safetensors"
    assert not jobs.sample_run(manifest, settings, output, lambda *a: None, 3.0)
    (batches,) = (folder / ".parts-batches").iterdir()
    (batch,) = batches.iterdir()
    batch.write_bytes(batch.read_bytes()[:100])  # killed while it wrote, or a full disk
    changed = settings.model_copy(update={"steps": 3})
    assert jobs.sample_run(manifest, changed, output, lambda *a: None)
    assert jobs.sample_run(manifest, settings, output, lambda *a: None)
    assert jobs.sample_run(manifest, settings, folder / "whole.safetensors", lambda *a: None)
    same(folder / "whole.safetensors", output)


def test_a_sweep_in_parts(tiny, tmp_path):
    preset = tiny(
        "training.iterations=2", "evaluation.reference_samples=40",
        "evaluation.validation_samples=12",
    )  # fmt: skip
    results, told = tmp_path / "results", []
    names = ["independent-B2-equal_mass-overlap0-s0", "end_to_end-s0"]
    for _ in range(60):
        if advance(image_pieces(preset, results, names, quiet), 0.5, say=told.append):
            break
    else:
        raise AssertionError(told)
    assert {run.name for run in finished_runs(preset, results)} == set(names)
    order = [line.split()[0] for line in told if " scores: done" in line]
    assert order == names
    left = image_pieces(preset, results, names, quiet)
    assert advance(left, 0.5, say=told.append), "nothing is left"
    same_again = tmp_path / "again"
    assert advance(image_pieces(preset, same_again, names, quiet), 1e6, say=lambda line: None)
    for name in names:
        for file in ("block0", "samples-plain"):
            same(*(r / "runs" / name / f"{file}.safetensors" for r in (results, same_again)))


@pytest.fixture
def text_file(tmp_path):
    # MAUVE asks for 20 texts.
    plain = LANGUAGE["generation"]["plain"] | {"prompts": 20, "batch_size": 15}
    return write_preset(tmp_path / "text.yaml", generation={"plain": plain})


@pytest.fixture
def language(text_file):
    return load_preset(text_file).language


def test_a_language_sweep_in_parts(language, tmp_path):
    names = ["independent-B2-equal_mass-overlap0-frozen-s0", "end_to_end-s0"]
    results, told = tmp_path / "parts", []
    for _ in range(60):
        if advance(text_pieces(language, results, names, quiet), 2.0, say=told.append):
            break
    else:
        raise AssertionError(told)
    assert {run.name for run in finished_text_runs(language, results)} == set(names)
    assert [line.split()[0] for line in told if " scores: done" in line] == names
    assert advance(text_pieces(language, results, names, quiet), 2.0), "nothing is left"
    whole = tmp_path / "whole"
    assert advance(text_pieces(language, whole, names, quiet), 1e6, say=lambda line: None)
    for name in names:
        for file in ("block0", "samples-plain"):
            same(*(r / "runs" / name / f"{file}.safetensors" for r in (results, whole)))


def test_continuations_in_parts_have_the_same_bits(language, tmp_path, monkeypatch):
    run, base = language.run("end_to_end-s0"), tmp_path / "r"
    no_time = text_pieces(language, base, [run.name], quiet)
    for piece in no_time:
        piece.work(1e6)
        if piece.name.endswith("manifest") and run.name in piece.name:
            break
    manifest, settings = base / "runs" / run.name / "manifest.json", language.generation["plain"]
    where = (manifest, base / "data", settings)
    assert language_jobs.generate_run(*where, tmp_path / "whole.safetensors", quiet(""))
    monkeypatch.setattr(language_jobs.time, "monotonic", Clock())
    parts, tries = tmp_path / "parts.safetensors", 1
    while not language_jobs.generate_run(*where, parts, quiet(""), 4.0):
        assert not parts.exists()
        tries += 1
    assert tries > 1
    same(tmp_path / "whole.safetensors", parts)
    assert not list(tmp_path.glob(".*")), "batches of finished continuations are removed"


def test_the_verb_does_the_language_half(text_file, tmp_path, capsys):
    name = "end_to_end-s0"
    shared = ["advance", "--language", "--preset", str(text_file), "--results", str(tmp_path / "r")]
    assert main([*shared, "--runs", name, "--seconds", "1000"]) == 0
    assert "1 of 6 language runs are in" in capsys.readouterr().out
    scores = (tmp_path / "r/language/tables/scores.csv").read_text()
    assert name in scores and "independent" not in scores
    assert not (tmp_path / "r/runs").exists(), "its images are left alone"
    assert main([*shared, "--runs", name, "--seconds", "1000"]) == 0
    assert "scores" not in capsys.readouterr().out.splitlines()[0], "nothing is done twice"


def test_short_jobs_wait_for_a_part_with_time(tiny, tmp_path):
    told = []
    clock = Clock()
    # Three looks at the clock are over half of the time before the first job could begin.
    results = tmp_path / "results"
    pieces = image_pieces(tiny(), results, [], quiet)
    assert not advance(pieces, 1.5, clock=clock, say=told.append)
    assert told == ["next: data"] and not results.exists()


def test_mistakes_are_one_line(tiny, language, tmp_path):
    with pytest.raises(UserError, match="expected more than 0"):
        advance([], 0)
    for pieces, where in (
        (image_pieces(tiny(), tmp_path, ["nothing"], quiet), "the sweep"),
        (text_pieces(language, tmp_path, ["nothing"], quiet), "the language sweep"),
    ):
        with pytest.raises(UserError, match=f"not in {where}"):
            advance(pieces, 1)


def test_the_verb_writes_tables_of_what_is_done(tiny_file, tmp_path, capsys):
    shared = [
        "advance", "--preset", str(tiny_file), "--results", str(tmp_path / "r"),
        "--set", "training.iterations=2", "evaluation.reference_samples=40",
        "evaluation.validation_samples=12", "--runs", "end_to_end-s0",
    ]  # fmt: skip
    assert main([*shared, "--seconds", "1000"]) == 0
    assert "1 of 4 runs are in" in capsys.readouterr().out
    scores = (tmp_path / "r/tables/scores.csv").read_text()
    assert "end_to_end-s0" in scores and "independent" not in scores
