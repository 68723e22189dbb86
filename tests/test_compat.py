"""The library elsewhere: without the workflow engine, the report's packages or newer ones."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent

#: Runs commands where some packages are not installed, as far as an import can tell.
BARE = """
import importlib.machinery as machinery
import json
import sys

blocked, commands = set(sys.argv[1].split(",")), json.loads(sys.argv[2])
found = machinery.PathFinder.find_spec


def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] in blocked else found(name, path, target)


machinery.PathFinder.find_spec = staticmethod(find_spec)
from diffusionblocks.cli import main

for command in commands:
    if code := main(command):
        sys.exit(code)
"""
EXTRAS = (
    "snakemake,papermill,nbconvert,matplotlib,seaborn,scipy,pandas,jinja2,datasets,timm,"
    "torchvision,torch_fidelity,diffusers,transformers"
)


def bare(blocked, *commands):
    plain = json.dumps([[str(word) for word in command] for command in commands])
    return subprocess.run(
        [sys.executable, "-c", BARE, blocked, plain],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


def test_training_and_sampling_need_no_extra(tiny_file, digits, tmp_path):
    select = ["--preset", tiny_file, "--set", "training.iterations=2"]
    run = [*select, "--run", "end_to_end-s0"]
    weights, manifest = tmp_path / "r/block0.safetensors", tmp_path / "r/manifest.json"
    done = bare(
        EXTRAS,
        ["runs", *select],
        ["train", *run, "--part", "block0", "--data", digits, "--output", weights,
         "--state", tmp_path / "s"],
        ["assemble", *run, "--parts", tmp_path / "r", "--output", manifest],
        ["sample", *select, "--manifest", manifest, "--sampling", "plain",
         "--output", tmp_path / "r/samples-plain.safetensors"],
        ["memory", "plan", *select, "--blocks", "2"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "r/samples-plain.json").is_file()


def test_a_missing_package_is_missed(tiny_file, tmp_path):
    command = ["sample", "--preset", tiny_file, "--manifest", tmp_path / "m", "--sampling",
               "plain", "--output", tmp_path / "o"]  # fmt: skip
    done = bare("safetensors", command)
    assert done.returncode == 1 and "No module named 'safetensors'" in done.stderr


def test_the_package_admits_older_pytorch_and_python_3_12():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    assert wanted["torch"].contains("2.11.0") and wanted["torch"].contains("2.12.1")
    python = Requirement(f"python{project['requires-python']}").specifier
    assert python.contains("3.11") and python.contains("3.12")
