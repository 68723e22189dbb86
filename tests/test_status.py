"""Progress of a sweep and comparison of runs, from files whose content is known."""

import json
import math

import pytest

from diffusionblocks.cli import main
from diffusionblocks.files import write_json, write_text
from diffusionblocks.status import Job, duration, failure, is_done, jobs_of, status, time_left


def finish(job, seconds=10.0):
    """Write a job's output as the job itself would."""
    if job.output.suffix == ".json":
        write_json(job.output, {"config_hash": job.config_hash, "seconds": seconds * job.work})
    else:
        write_text(job.output, "done")


def jobs_by_stage(preset, results, stage):
    return [job for job in jobs_of(preset, results) if job.stage == stage]


def test_a_new_sweep_has_everything_to_do(tiny, tmp_path):
    text, failed = status(tiny(), tmp_path, 2)
    # One whole network, two and three blocks, and the interleaved run in one piece.
    assert "train           0/7 done" in text and "all            0/27 done" in text
    assert "not known yet for" in text and not failed


def test_time_left_is_the_rate_of_the_finished_times_the_work_left(tiny, tmp_path):
    preset = tiny()
    jobs = jobs_by_stage(preset, tmp_path, "train")
    assert sorted(job.work for job in jobs) == [2, 2, 2, 3, 3, 6, 6]
    for job in jobs[:2]:
        finish(job)
    left = jobs[2:]
    assert time_left(jobs[:2], left) == pytest.approx(10 * sum(job.work for job in left))
    assert time_left([], left) is None and time_left(jobs[:2], []) == 0
    text, _ = status(preset, tmp_path, 2)
    assert "train           2/7 done" in text and "besides data, sample, evaluate, memory" in text


def test_a_finished_sweep_is_done(tiny, tmp_path):
    for job in jobs_of(tiny(), tmp_path):
        finish(job)
    text, failed = status(tiny(), tmp_path, 2)
    assert "all           27/27 done" in text and "time left" not in text and not failed


def test_outputs_of_other_settings_do_not_count(tiny, tmp_path):
    job = jobs_by_stage(tiny(), tmp_path, "train")[0]
    finish(job)
    assert is_done(job)
    changed = jobs_by_stage(tiny("training.learning_rate=0.5"), tmp_path, "train")[0]
    assert not is_done(changed)
    job.output.write_text('{"config_hash": ')
    assert not is_done(job)


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        ("a: 3/9 steps\ndiffusionblocks: the loss is not finite\n", "the loss is not finite"),
        ("Traceback (most recent call last):\n  File x\nValueError: no\n", "ValueError: no"),
        ("a: 3/9 steps\n", ""),
        (None, ""),
    ],
)
def test_a_failed_job_shows_the_tail_of_its_log(tmp_path, log, shown):
    file = tmp_path / "job.log"
    if log is not None:
        file.write_text(log)
    tail = failure(Job("train", "x", tmp_path / "x.json", file))
    assert (shown in tail) if shown else tail == ""


def test_status_names_the_failure_and_says_so_to_the_shell(tiny, tiny_file, tmp_path, capsys):
    job = jobs_by_stage(tiny(), tmp_path, "train")[0]
    write_text(job.log, "\n".join(f"line {i}" for i in range(20)) + "\ndiffusionblocks: boom\n")
    assert main(["status", "--preset", str(tiny_file), "--results", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "failed: train end_to_end-s0 block0" in shown and "    diffusionblocks: boom" in shown
    assert "line 19" in shown and "line 3\n" not in shown
    finish(job)
    assert main(["status", "--preset", str(tiny_file), "--results", str(tmp_path)]) == 0
    assert "failed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "words"), [(40, "40 s"), (720, "12 min"), (3.5 * 3600, "3.5 h")]
)
def test_durations_are_in_words(seconds, words):
    assert duration(seconds) == words


# ------------------------------------------------------------------------------ compare


def write_run(folder, run, value):
    """A finished run whose every number is known."""
    named = {"run": run.identity(), "config": run.model_dump(mode="json")}
    write_json(folder / "manifest.json", {**named, "blocks": [{"file": "block0.safetensors"}]})
    write_json(folder / "block0.json", {"seconds": 2 * value})
    score = {"metric": "fid", "split": "test", "sampling": "plain", "value": value}
    losses = [{"loss": value}, {"loss": 3 * value}]
    write_json(folder / "scores.json", {"scores": [score], "validation": losses})
    write_json(folder / "samples-plain.json", {"trajectories_per_second": 1.0})


@pytest.fixture
def runs(tiny, tmp_path):
    """End to end and two blocks, three seeds each: differences of 1, 2 and 3."""
    for run in tiny("sweep.seeds=[0,1,2]").runs():
        if run.blocks < 3:
            value = 10.0 if run.blocks == 1 else 11.0 + run.seed
            write_run(tmp_path / run.name, run, value)
    return tmp_path


def lines_of(capsys, a, b):
    assert main(["compare", str(a), str(b)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {row[0]: row for row in rows if row}


def test_configurations_are_compared_by_seed(runs, capsys):
    found = lines_of(capsys, runs / "independent-B2-equal_mass-overlap0", runs / "end_to_end")
    assert found["blocks"] == ["blocks", "2", "1"] and "seed" not in found
    half = 4.302652729911275 / math.sqrt(3)
    wanted = ["fid", "test", "plain", "12", "10", "+2"]
    assert found["fid"][:6] == wanted
    assert float(found["fid"][6].replace("−", "-")) == pytest.approx(2 - half, abs=0.01)
    assert found["fid"][-2:] == ["3", "seeds"]
    assert found["validation_loss"][2:5] == ["24", "20", "+4"]
    assert found["training_seconds"][1:4] == ["24", "20", "+4"]


def test_single_runs_differ_without_an_interval(runs, capsys):
    found = lines_of(capsys, runs / "end_to_end-s0", runs / "end_to_end-s1")
    assert found["seed"] == ["seed", "0", "1"]
    assert found["fid"][3:6] == ["10", "10", "+0"] and found["fid"][6:] == ["one", "run", "each"]


def test_runs_of_the_same_settings_say_so(runs, capsys):
    assert main(["compare", str(runs / "end_to_end"), str(runs / "end_to_end")]) == 0
    assert "The settings agree." in capsys.readouterr().out


def test_a_metric_of_one_side_only_is_shown(runs, capsys):
    file = runs / "end_to_end-s0/scores.json"
    scores = json.loads(file.read_text())
    scores["scores"].append({"metric": "kid", "split": "test", "sampling": "plain", "value": 1.0})
    write_json(file, scores)
    found = lines_of(capsys, runs / "end_to_end-s0", runs / "end_to_end-s1")
    assert found["kid"] == ["kid", "test", "plain", "1"]


def test_a_run_that_is_none_is_one_line(runs, capsys):
    assert main(["compare", str(runs / "end_to"), str(runs / "end_to_end")]) == 2
    said = capsys.readouterr().err
    assert "no finished run" in said and "independent-B2-equal_mass-overlap0" in said
    assert said.count("\n") == 1
