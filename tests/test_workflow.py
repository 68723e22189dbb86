"""The workflow: the smoke sweep run once for real, and what its plan promises."""

import ast
import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from diffusionblocks.cli import main

ROOT = Path(__file__).resolve().parent.parent
PRESETS = sorted(p.stem for p in (ROOT / "workflow/config/presets").glob("*.yaml"))
pytestmark = pytest.mark.slow


def snakemake(results, *arguments, preset="smoke", overrides=""):
    command = [
        sys.executable, "-m", "snakemake", "--cores", "2", "--nolock", *arguments,
        "--config", f"preset={preset}", f"results={results}",
    ]  # fmt: skip
    if overrides:
        command.append(f"set={overrides}")
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)


def planned(output):
    """Jobs that a dry run counts, by rule."""
    table = output.split("Job stats:")[1].split("total")[0] if "Job stats:" in output else ""
    return {m[1]: int(m[2]) for m in re.finditer(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The smoke sweep, run once; the folder of its results."""
    root = tmp_path_factory.mktemp("results")
    done = snakemake(root)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.fixture(scope="module")
def smoke(results):
    return results / "smoke"


def test_everything_promised_is_there(smoke):
    for name in ("scores", "floors", "validation_loss", "training", "curves", "sampling"):
        assert rows(smoke / f"tables/{name}.csv"), name
    for folder in ("figures", "memory/figures", "verdict/figures"):
        assert {p.suffix for p in (smoke / folder).glob("[!.]*")} == {".svg", ".png", ".csv"}
    for notebook in ("image_quality", "memory", "verdict"):
        page = (smoke / f"report/{notebook}.html").read_text()
        assert "Traceback" not in page and "<img" in page
    assert list((smoke / "tables/samples").glob("*.png"))
    assert not list((smoke / "state").rglob("*.safetensors")), "checkpoints of finished jobs"
    assert not list(smoke.rglob("*.part"))


def test_it_ends_with_the_site_and_its_verdicts(results, smoke):
    verdicts = rows(smoke / "tables/claims.csv")
    # Two seeds are too few for any claim but those on memory, which is counted.
    decided = {row["claim"] for row in verdicts if row["verdict"] != "not tested"}
    assert decided == {"memory", "memory_checkpointing"}
    page = (smoke / "report/index.html").read_text()
    assert all(row["title"].replace("'", "&#39;") in page for row in verdicts)
    assert len(list((smoke / "report/runs").glob("*.html"))) == 10
    again = snakemake(results, "--forcerun", "claims")
    assert again.returncode == 0
    assert (smoke / "tables/claims.txt").read_text() in again.stdout


def test_editing_a_run_s_scores_changes_what_is_claimed(smoke, tmp_path):
    copy = tmp_path / "smoke"
    shutil.copytree(smoke, copy)
    for path in copy.glob("runs/independent-B2-equal_mass*/scores.json"):
        record = json.loads(path.read_text())
        for row in record["scores"]:
            row["value"] *= 3 if row["metric"] == "fid" else 1
        path.write_text(json.dumps(record))
    config, ledger = ROOT / "workflow/config", tmp_path / "claims.yaml"
    claims = yaml.safe_load((config / "claims.yaml").read_text())["claims"]
    (claim,) = (c for c in claims if c["id"] == "two_blocks")
    ledger.write_text(yaml.safe_dump({"claims": [claim | {"min_seeds": 2}]}))
    preset, found = str(config / "presets/smoke.yaml"), []
    for folder in (smoke, copy):
        tables, output = tmp_path / "tables", tmp_path / "claims"
        where = ["--results", str(folder), "--output", str(tables)]
        assert main(["tables", "--preset", preset, *where]) == 0
        arguments = ["--ledger", str(ledger), "--output", str(output)]
        arguments += ["--published", str(config / "published.csv")]
        assert main(["claims", "--tables", str(tables), *arguments]) == 0
        found += [row["verdict"] for row in rows(output / "claims.csv")]
    assert found[1] == "contradicted" != found[0]


def test_an_independent_run_is_a_job_a_block(smoke):
    run = smoke / "runs/independent-B3-equal_mass-overlap0.05-l1.4.1-s0"
    parts = sorted(p.name for p in run.glob("block*.safetensors"))
    assert parts == ["block0.safetensors", "block1.safetensors", "block2.safetensors"]
    layers = [
        json.loads((run / f"block{b}.json").read_text())["blocks"][0]["layers"] for b in range(3)
    ]
    assert layers == [1, 4, 1]


def test_runs_of_one_table_cost_the_same(smoke):
    scores = rows(smoke / "tables/scores.csv")
    assert len({r["layer_evaluations"] for r in scores}) == 1
    assert {r["seed"] for r in scores} == {"0", "1"}
    assert all(r["extractor"] and r["samples"] for r in scores)
    training = rows(smoke / "tables/training.csv")
    per_run = {}
    for r in training:
        per_run[r["run"]] = per_run.get(r["run"], 0) + int(r["layer_evaluations"])
    assert set(per_run.values()) == {int(scores[0]["layer_evaluations"])}


def test_every_score_has_its_floor(smoke):
    floors = {(r["metric"], r["split"], r["samples"]) for r in rows(smoke / "tables/floors.csv")}
    for r in rows(smoke / "tables/scores.csv"):
        assert (r["metric"], r["split"], r["samples"]) in floors


def test_metrics_carry_provenance(smoke):
    for path in (smoke / "runs").rglob("*.json"):
        if path.name != "manifest.json":
            found = json.loads(path.read_text())["provenance"]
            assert found["packages"]["torch"] and found["threads"] == 1, path


def test_nothing_changed_means_nothing_to_do(results):
    again = snakemake(results)
    assert again.returncode == 0 and "Nothing to be done" in again.stderr + again.stdout


@pytest.mark.parametrize(
    ("override", "rerun"),
    [
        ("sampling.plain.steps=7", {"sample": 10, "evaluate": 10}),
        ("evaluation.validation_bands=5", {"floor": 1, "evaluate": 10}),
        ("training.learning_rate=0.001", {"train": 18, "assemble": 10, "sample": 10}),
        ("sweep.seeds=[0,1,2]", {"train": 9, "sample": 5, "evaluate": 5}),
    ],
)
def test_a_changed_value_reruns_what_depends_on_it(results, override, rerun):
    dry = snakemake(results, "-n", overrides=override)
    assert dry.returncode == 0
    found = planned(dry.stdout + dry.stderr)
    assert {name: found.get(name) for name in rerun} == rerun
    untouched = {"data", "train", "sample", "floor"} - set(rerun)
    if "train" in rerun:
        untouched -= {"sample"}
    assert not untouched & set(found)


def test_the_tables_are_a_function_of_the_results(results, smoke):
    before = {p.name: p.read_bytes() for p in (smoke / "tables").glob("*.csv")}
    assert snakemake(results, "--forcerun", "tables").returncode == 0
    after = {p.name: p.read_bytes() for p in (smoke / "tables").glob("*.csv")}
    assert before == after


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_plans(tmp_path, preset):
    dry = snakemake(tmp_path, "-n", preset=preset)
    assert dry.returncode == 0, dry.stderr[-2000:]
    assert planned(dry.stdout + dry.stderr)["train"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"overrides": "trainig.iterations=3"}, "did you mean 'training'"),
        ({"preset": "smoek"}, "did you mean 'smoke'"),
        ({"preset": "../smoke"}, "not made of letters"),
        ({"overrides": "sweep.variants.0.blocks=3"}, "holds a value"),
    ],
)
def test_a_mistake_is_one_line_before_any_job(tmp_path, arguments, says):
    done = snakemake(tmp_path, **arguments)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("diffusionblocks: ")]
    assert len(lines) == 1 and says in lines[0]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_failing_job_shows_its_one_line(tmp_path):
    done = snakemake(tmp_path, preset="cifar10_small", overrides=f"data.path={tmp_path}/none")
    assert done.returncode != 0
    assert "train.parquet does not exist" in done.stdout + done.stderr
    assert not list(tmp_path.rglob("dataset.json"))


def imported(path):
    """Top-level names that a module imports from outside the package, and its own siblings."""
    outside, inside = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            (inside if node.level else outside).add((node.module or "").split(".")[0])
    return outside - set(sys.stdlib_module_names), inside


def test_the_library_never_imports_snakemake():
    for path in (ROOT / "src").rglob("*.py"):
        assert "snakemake" not in imported(path)[0], path


@pytest.mark.parametrize(
    "name", ["preconditioning", "noise", "partition", "losses", "sampling", "networks/dit"]
)
def test_the_maths_imports_torch_only(name):
    outside, inside = imported(ROOT / f"src/diffusionblocks/{name}.py")
    assert outside <= {"torch"}
    assert inside <= {"noise", "partition", "preconditioning"}


PLANNING = ["config", "errors", "files", "layers", "ledger", "manifest", "parts", "status"]


@pytest.mark.parametrize("name", PLANNING)
def test_planning_does_not_load_torch(name):
    assert "torch" not in imported(ROOT / f"src/diffusionblocks/{name}.py")[0]
