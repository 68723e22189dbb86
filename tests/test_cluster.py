"""Clusters: what jobs need, how long a sweep takes on paper, what a failure means."""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusionblocks.cli import main
from diffusionblocks.cluster.dag import Job, jobs_of
from diffusionblocks.cluster.failures import CAUSES, failures, summary
from diffusionblocks.cluster.needs import needs, part_peak, training_peaks
from diffusionblocks.cluster.scale import GPUS, SWEEP, report, rows, works
from diffusionblocks.cluster.schedule import critical_path, finish
from diffusionblocks.cluster.times import Times, job_seconds, times_of_results
from diffusionblocks.config import load_preset
from diffusionblocks.errors import UserError
from diffusionblocks.files import write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
PRESETS = ROOT / "workflow/config/presets"
PROFILES = ROOT / "profiles"


def job(name, *needs, urgent=0):
    return Job(name, "rule", "kind", needs=needs, urgent=urgent)


def dry_run(*arguments, preset="smoke"):
    command = [sys.executable, "-m", "snakemake", "-n", "--nolock", *arguments]
    with TemporaryDirectory() as results:
        command += ["--config", f"preset={preset}", f"results={results}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def counted(output):
    """Jobs by rule of a dry run; the target itself is no job."""
    table = output.split("Job stats:")[1].split("total")[0]
    found = {m[1]: int(m[2]) for m in re.finditer(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
    return {rule: count for rule, count in found.items() if rule != "all"}


#: Two ways to train: enough where every way is planned or measured, which takes seconds each.
FEW = "sweep.variants=[{method: end_to_end}, {method: blockwise_independent, blocks: 3}]"


# --- jobs and time ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["smoke", "cifar10_small"])
def test_the_jobs_are_those_of_the_workflow(preset):
    found = {}
    for each in jobs_of(load_preset(PRESETS / f"{preset}.yaml")):
        found[each.rule] = found.get(each.rule, 0) + 1
    dry = dry_run("--cores", "1", preset=preset)
    assert dry.returncode == 0, dry.stderr
    assert found == counted(dry.stdout + dry.stderr)


def test_jobs_stand_after_those_they_need():
    seen = set()
    for each in jobs_of(load_preset(PRESETS / "default.yaml")):
        assert set(each.needs) <= seen and each.name not in seen
        seen.add(each.name)


@pytest.mark.parametrize(("count", "workers"), [(12, 1), (12, 4), (13, 4), (5, 1024)])
def test_equal_jobs_go_in_full_rounds(count, workers):
    jobs = [job(f"{i}") for i in range(count)]
    seconds = {each.name: 3.0 for each in jobs}
    assert finish(jobs, seconds, workers) == 3.0 * math.ceil(count / workers)


def test_urgent_jobs_go_first_and_needed_ones_before():
    jobs = [job("a"), job("b"), job("long", urgent=1), job("last", "long")]
    seconds = {"a": 1.0, "b": 1.0, "long": 2.0, "last": 1.0}
    assert finish(jobs, seconds, 2) == 3.0  # long beside a and b, then last
    assert critical_path(jobs, seconds) == 3.0
    late = [job("a"), job("b"), job("long"), job("last", "long")]
    assert finish(late, seconds, 2) == 4.0  # a beside b, then long, then last


@st.composite
def graphs(draw):
    """Jobs that need earlier ones, and their seconds."""
    jobs = []
    for i in range(draw(st.integers(1, 12))):
        wanted = draw(st.sets(st.sampled_from([j.name for j in jobs]))) if jobs else set()
        jobs.append(job(str(i), *sorted(wanted), urgent=draw(st.integers(0, 2))))
    seconds = {j.name: float(draw(st.integers(1, 50))) for j in jobs}
    return jobs, seconds


@settings(deadline=None)
@given(graphs(), st.integers(1, 6))
def test_the_finish_keeps_graham_s_bounds(graph, workers):
    jobs, seconds = graph
    work, longest = sum(seconds.values()), critical_path(jobs, seconds)
    found = finish(jobs, seconds, workers)
    assert max(work / workers, longest) - 1e-9 <= found
    assert found <= (work - longest) / workers + longest + 1e-9
    assert finish(jobs, seconds, len(jobs)) == pytest.approx(longest)
    assert finish(jobs, seconds, 1) == pytest.approx(work)


# --- measured times -----------------------------------------------------------------------------


def exact_times(preset, per_layer=0.5):
    """Steps that cost their layers and nothing else."""
    kinds = {j.kind: j.layers * per_layer for j in jobs_of(preset) if j.rule == "train"}
    batch = preset.training.batch_size
    return Times(source="none", device="d", batch_size=batch, start=0, step=kinds)


def test_b_blocks_on_b_gpus_take_a_bth_and_end_to_end_does_not_shrink(tiny):
    preset = tiny()
    chosen = works(preset, lambda p: {r.name: dict.fromkeys(r.parts, 2**30) for r in p.runs()})
    found = rows(preset, exact_times(preset), chosen)
    hours = {(r["work"], r["gpus"]): r["hours"] for r in found}
    whole = 8 * 6 * 0.5 / 3600
    for gpus in GPUS:
        assert hours["end to end, one run", gpus] == pytest.approx(whole)
        assert hours["B = 3, interleaved, one run", gpus] == pytest.approx(whole)
        for B in (2, 3):
            rounds = math.ceil(B / gpus)
            expected = whole / B * rounds
            assert hours[f"B = {B}, independent, one run", gpus] == pytest.approx(expected)
    assert {r["memory_gib"] for r in found} == {1.0}
    sweep = [r for r in found if r["work"] == SWEEP]
    assert sweep[-1]["hours"] == pytest.approx(sweep[-1]["critical_path_hours"])
    assert sweep[0]["hours"] == pytest.approx(sweep[0]["gpu_hours"])
    text = report("tiny", exact_times(preset), found)
    assert "end to end, one run" in text and "1024" in text


def test_steps_count_in_proportion_to_their_examples(tiny):
    preset = tiny()
    times = exact_times(preset)
    training = [j for j in jobs_of(preset) if j.rule == "train"]
    whole = job_seconds(preset, times, training)
    quarter = times.model_copy(update={"batch_size": 4})
    again = job_seconds(preset, quarter, training)
    assert all(again[name] == pytest.approx(4 * whole[name]) for name in whole)


def test_times_of_a_sweep_are_medians_of_its_kinds(tiny, tmp_path):
    preset = tiny("sweep.seeds=[0,1,2]")
    for each in jobs_of(preset):
        seed = int(each.run[-1]) if each.run else 0
        write_text(tmp_path / "benchmarks" / f"{each.name}.tsv", f"s\tx\n{10 + seed}\t0\n")
        if each.rule == "train":
            run, part = each.name.removeprefix("train/").rsplit("-", 1)
            record = {"seconds": 4.0 + seed, "seconds_per_iteration": (1 + seed) * each.layers}
            record |= {"provenance": {"device": "here"}}
            write_json(tmp_path / "runs" / run / f"{part}.json", record)
    times = times_of_results(preset, tmp_path)
    assert times.device == "here" and times.start == 6.0
    assert times.step["train 3 layers, 3 a step"] == 6.0
    assert times.whole["evaluate"] == 11.0 and times.whole["site"] == 10.0
    seconds = job_seconds(preset, times, jobs_of(preset))
    assert seconds["train/end_to_end-s0-block0"] == 6.0 + 8 * 12.0
    assert seconds["evaluate/end_to_end-s2"] == 11.0


def test_a_sweep_without_times_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="diffusionblocks cluster measure"):
        times_of_results(tiny(), tmp_path)
    other = exact_times(tiny("network.layers=12"))
    with pytest.raises(UserError, match="no step time for 'train 6 layers, 6 a step'"):
        known = other.model_copy(update={"step": {"train 12 layers, 12 a step": 1.0}})
        job_seconds(tiny(), known, jobs_of(tiny()))


def test_measure_then_plan(tiny_file, tmp_path, capsys):
    times, preset = tmp_path / "times.json", ["--preset", str(tiny_file), "--set", FEW]
    arguments = ["--batch", "4", "--steps", "2", "--output", str(times)]
    assert main(["cluster", "measure", *preset, *arguments]) == 0
    found = json.loads(times.read_text())
    assert found["batch_size"] == 4 and found["start"] > 0
    assert set(found["step"]) == {"train 6 layers, 6 a step", "train 2 layers, 2 a step"}
    assert all(seconds > 0 for seconds in found["step"].values())
    plan = ["cluster", "plan", *preset, "--times", str(times), "--figures", str(tmp_path)]
    assert main([*plan, "--gpus", "1", "4"]) == 0
    text = capsys.readouterr().out
    assert "whole sweep" in text and "B = 3, independent, one run" in text
    assert {p.suffix for p in tmp_path.glob("tiny_scale.*")} == {".svg", ".png", ".csv"}
    assert main([*plan, "--gpus", "0"]) == 2
    assert "expected at least 1" in capsys.readouterr().err
    times.write_text('{"source": "x"}')
    assert main(plan) == 2
    assert "times.json: device: this key is missing" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif("TIMED" not in os.environ, reason="set TIMED=1 on a machine with nothing else")
def test_the_prediction_meets_the_wall_time_of_two_cores(tmp_path):
    command = [sys.executable, "-m", "snakemake", "--nolock", "--cores", "2", "--config"]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "preset=smoke", f"results={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    wall = time.monotonic() - began
    assert done.returncode == 0, done.stderr[-2000:]
    preset = load_preset(PRESETS / "smoke.yaml")
    jobs = jobs_of(preset)
    times = times_of_results(preset, tmp_path / "smoke")
    predicted = finish(jobs, job_seconds(preset, times, jobs), 2)
    print(f"predicted {predicted:.1f} s, measured {wall:.1f} s")
    assert predicted == pytest.approx(wall, rel=0.25)


# --- what jobs need -----------------------------------------------------------------------------


def test_a_block_needs_less_memory_than_the_network(tiny):
    preset = tiny("network.width=64", FEW)
    peaks = training_peaks(preset)
    whole = peaks["end_to_end-s0"]["block0"]
    thirds = peaks["independent-B3-equal_mass-overlap0-s0"]
    assert len(thirds) == 3 and max(thirds.values()) < whole
    found = needs(preset)
    for run in preset.runs():
        assert set(found["training"][run.name]) == set(run.parts)
    assert found["others"] == max(max(p.values()) for p in found["training"].values())


def test_processes_share_the_batch_and_each_holds_its_programs(tiny):
    alone, shared = tiny(FEW), tiny(FEW, "compute.processes=2")
    run = shared.run("end_to_end-s0")
    halved = tiny("training.batch_size=8")
    assert part_peak(shared, run, "block0") == part_peak(halved, halved.run(run.name), "block0")
    one, two = (needs(p)["training"][run.name]["block0"] for p in (alone, shared))
    assert 1.9 * one < two <= 2 * one


def test_needs_are_planned_again_when_a_setting_changes(tiny):
    def identity(*overrides):
        return needs(tiny("sweep.variants=[{method: end_to_end}]", *overrides))["identity"]

    assert identity() == identity("evaluation.validation_bands=4")
    assert identity() != identity("training.batch_size=8")


# --- failures -----------------------------------------------------------------------------------

ERROR = """\
[Mon Nov 23 05:10:32 2026]
Error in rule train:
    message: {message}
    jobid: {jobid}
    input: /r/data/dataset.json
    output: /r/runs/end_to_end-s0/block0.safetensors
    log: /r/logs/train/end_to_end-s0-block{jobid}.log (check log file(s) for error details)
    shell:
        diffusionblocks train --run end_to_end-s0
"""
FINISHED = "[Mon Nov 23 05:12:32 2026]\nFinished jobid: {jobid} (Rule: train)\n"
MESSAGES = {
    "does not exist": "SLURM sbatch failed. The error message was 'sbatch: error: Batch job "
    "submission failed: Invalid partition name specified'.",
    "more time than its partition": "SLURM sbatch failed. The error message was 'sbatch: error: "
    "Batch job submission failed: Requested time limit is invalid'.",
    "any node of its partition": "SLURM sbatch failed. The error message was 'sbatch: error: "
    "Requested node configuration is not available'.",
    "outlived its time": "SLURM-job '7' failed, SLURM status is: 'TIMEOUT'. Reason: Unknown.",
    "outgrew its memory": "SLURM-job '7' failed, SLURM status is: 'OUT_OF_MEMORY'.",
    "node went down": "SLURM-job '7' failed due to a node failure, SLURM status is: 'NODE_FAIL'.",
    "was cancelled": "SLURM-job '7' failed, SLURM status is: 'CANCELLED'. Reason: Unknown.",
}


def test_every_cause_is_tested():
    assert len(MESSAGES) == len(CAUSES)


@pytest.mark.parametrize("cause", MESSAGES)
def test_a_failure_is_a_line_with_job_cause_and_mend(cause):
    (line,) = summary(ERROR.format(message=MESSAGES[cause], jobid=3))
    assert line.startswith("failed: train end_to_end-s0-block3: ") and cause in line
    assert "start the same command again" in line and "{" not in line


def test_a_job_that_a_later_attempt_finished_is_no_failure():
    text = ERROR.format(message=MESSAGES["was cancelled"], jobid=3) + "Trying to restart job 3.\n"
    assert [f.finished for f in failures(text)] == [False]
    (line,) = summary(text + FINISHED.format(jobid=3))
    assert line == (
        "recovered: train end_to_end-s0-block3: it was cancelled; a later attempt finished it"
    )
    # Job 33 is another one.
    assert [f.finished for f in failures(text + FINISHED.format(jobid=33))] == [False]


def test_the_last_of_several_causes_counts():
    text = "".join(
        ERROR.format(message=MESSAGES[c], jobid=3) for c in ("was cancelled", "node went down")
    )
    (line,) = summary(text)
    assert "node went down" in line


def test_a_job_s_own_words_are_passed_on():
    text = ERROR.format(message="None", jobid=4) + (
        "Logfile /r/logs/train/end_to_end-s0-block4.log:\n"
        "================\n"
        "diffusionblocks: the loss is not finite at step 3; lower training.learning_rate\n"
    )
    (line,) = summary(text)
    assert line.endswith("the loss is not finite at step 3; lower training.learning_rate")


def test_a_group_s_jobs_are_named_with_what_slurm_wrote_into_their_log():
    text = """\
[Mon Nov 23 05:18:55 2026]
    message: Error in group score
    log: /r/slurm/group_score/11.log (check log file(s) for error details)
    jobs:
        rule assemble:
            jobid: 2
            output: /r/runs/end_to_end-s0/manifest.json
            log: /r/logs/assemble/end_to_end-s0.log (check log file(s) for error details)
        rule sample:
            jobid: 5
            log: /r/logs/sample/end_to_end-s0-plain.log (check log file(s) for error details)
slurmstepd: error: *** JOB 11 ON vm CANCELLED AT 2026-11-23T05:18:55 DUE TO TIME LIMIT ***
    [Mon Nov 23 05:18:55 2026]
    Error in rule assemble:
        message: None
        jobid: 2
        log: /r/logs/assemble/end_to_end-s0.log (check log file(s) for error details)
"""
    found = {f.name: f.reason for f in failures(text)}
    assert set(found) == {"assemble end_to_end-s0", "sample end_to_end-s0-plain"}
    assert all("outlived its time limit" in reason for reason in found.values())


def test_what_slurm_wrote_into_a_job_s_log_is_read():
    """Snakemake shows the first log of several and stops where it is missing."""
    text = ERROR.format(message="SLURM-job '7' failed, SLURM status is: 'FAILED'.", jobid=3)
    text = text.replace("-block3.log (", "-block3.log, /r/slurm/7.log (")
    logs = {"/r/slurm/7.log": "slurmstepd: error: Exceeded job memory limit\n"}
    (failure,) = failures(text, lambda path: logs.get(path, ""))
    assert failure.reason.startswith("it outgrew its memory limit")


def test_a_sound_run_has_nothing_to_say():
    assert summary("Select jobs to execute...\n" + FINISHED.format(jobid=3)) == []


# --- this machine's GPUs ------------------------------------------------------------------------


@pytest.mark.slow
def test_no_more_jobs_than_cards_run_here(tmp_path, monkeypatch):
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'GPU 0: pretend'\necho 'GPU 1: pretend'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    # The data are decoded on the CPU; what matters is what the scheduler may hand out.
    command = [sys.executable, "-m", "snakemake", "--nolock", "--cores", "8", "--verbose"]
    command += [f"{tmp_path}/smoke/data/dataset.json", "--config", "preset=smoke"]
    command += [f"results={tmp_path}", "set=compute.device=cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'gpu=Resource("gpu", 2)' in done.stdout + done.stderr


# --- profiles -----------------------------------------------------------------------------------


def rule_names():
    text = "".join(p.read_text() for p in (ROOT / "workflow/rules").glob("*.smk"))
    return set(re.findall(r"^rule (\w+):", text, re.MULTILINE))


def test_the_slurm_profile_names_rules_that_exist():
    profile = yaml.safe_load((PROFILES / "slurm/config.yaml").read_text())
    assert set(profile["set-resources"]) | set(profile["groups"]) <= rule_names()
    # One job with the scores of several runs would wait for the run that failed.
    assert "group-components" not in profile
    # A block is a job of its own, whatever else is grouped.
    assert "train" not in profile["groups"]
    partitions = yaml.safe_load((ROOT / profile["slurm-partition-config"]).read_text())
    assert set(partitions) == {"partitions"}


@pytest.mark.slow
def test_the_kubernetes_profile_plans_the_sweep_and_says_it_is_no_more():
    dry = dry_run("--profile", "profiles/kubernetes")
    assert dry.returncode == 0, dry.stderr
    assert counted(dry.stdout + dry.stderr)["train"] == 18
    assert "DRY RUN ONLY" in (PROFILES / "kubernetes/config.yaml").read_text()
