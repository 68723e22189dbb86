"""The set-up: pins, hashes, the conda file and what must never be committed."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import diffusionblocks

ROOT = Path(__file__).parents[1]
ENVS = ROOT / "envs"
# Spelt so that this file does not match itself.
INDEX = re.compile(r"--(extra-)?index" + r"-url|--find" + r"-links")
REGISTRY = re.compile(
    r"https?://[^\s/]*(pypi|pythonhosted|pytorch\.org/whl|anaconda|npmjs)", re.IGNORECASE
)


def lock_blocks(path: Path) -> list[list[str]]:
    """Requirements of a lock, each with the lines that continue it; comments are dropped."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "\0")
    return [[part.strip() for part in line.split("\0")] for line in joined.splitlines() if line]


def locked(path: Path) -> list[Requirement]:
    return [Requirement(block[0]) for block in lock_blocks(path)]


def direct(path: Path) -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def pin(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==" and not specifier.version.endswith(".*"), str(requirement)
    return specifier.version


def applying(requirements: list[Requirement], python: str) -> dict[str, str]:
    """Version of every package that a Linux machine with that Python gets."""
    system = {
        **default_environment(),
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "python_version": python,
        "python_full_version": f"{python}.9",
    }
    chosen = [r for r in requirements if r.marker is None or r.marker.evaluate(system)]
    names = [canonicalize_name(r.name) for r in chosen]
    assert len(names) == len(set(names)), "two versions of one package apply"
    return dict(zip(names, map(pin, chosen), strict=True))


@pytest.mark.parametrize("name", ["requirements.lock", "bootstrap.lock"])
def test_every_locked_requirement_is_exact_and_hashed(name):
    blocks = lock_blocks(ENVS / name)
    assert blocks
    for first, *rest in blocks:
        pin(Requirement(first))
        assert rest, f"{first} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in rest), first


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("name", ["requirements", "bootstrap"])
def test_lock_holds_every_direct_requirement(name, python):
    lock = applying(locked(ENVS / f"{name}.lock"), python)
    for requirement in direct(ENVS / f"{name}.in"):
        found = lock[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(found), f"{requirement}: the lock has {found}"


def test_torch_and_torchvision_belong_together():
    wanted = {r.name: str(r.specifier) for r in direct(ENVS / "requirements.in")}
    assert (wanted["torch"], wanted["torchvision"]) == ("==2.12.1", "==0.27.1")


def test_lock_satisfies_the_package_and_its_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["build-system"]["requires"]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    lock = applying(locked(ENVS / "requirements.lock"), "3.11")
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)])


def test_conda_file_pins_what_the_lock_pins():
    environment = yaml.safe_load((ENVS / "cpu.yaml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *_, pip = environment["dependencies"]
    ours = applying([Requirement(line) for line in pip["pip"]], "3.11")
    assert ours == applying(locked(ENVS / "requirements.lock"), "3.11")


def test_conda_file_is_what_make_lock_writes():
    spec = importlib.util.spec_from_file_location("conda", ENVS / "conda.py")
    conda = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conda)
    assert (ENVS / "cpu.yaml").read_text() == conda.conda_file(
        (ENVS / "requirements.lock").read_text()
    )


def test_running_packages_are_those_of_the_lock():
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    lock = applying(locked(ENVS / "requirements.lock"), python)
    for name in ("torch", "torchvision", "numpy", "snakemake", "torch-fidelity", "safetensors"):
        assert version(name).partition("+")[0] == lock[name]


def test_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == diffusionblocks.__version__
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2506.14202"


def test_no_tracked_file_names_a_package_index():
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    assert len(paths) > 20
    for path in paths:
        if not path.is_file():  # deleted, not yet committed
            continue
        text = path.read_bytes().decode("utf-8", errors="replace")
        for pattern in (INDEX, REGISTRY):
            found = pattern.search(text)
            assert not found, f"{path.relative_to(ROOT)} names a package index: {found[0]}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pip install --extra-index" + "-url x", True),
        ("--no-emit-index" + "-url", False),
        ("https" + "://pypi.example/simple", True),
        ("https://www.apache.org/licenses", False),
    ],
)
def test_index_patterns_tell_addresses_from_prose(text, found):
    assert bool(INDEX.search(text) or REGISTRY.search(text)) is found


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run make as from a terminal, even when these tests themselves run under make."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


@pytest.fixture
def project(tmp_path):
    """A folder with a space in its name that holds what the set-up reads, and no .venv."""
    folder = tmp_path / "a project"
    (folder / "envs").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "envs/bootstrap.lock", "envs/requirements.lock"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture
def interpreter(tmp_path):
    """Stands in for Python: records its calls; `-m venv` copies it, the first fault fails once."""
    path = tmp_path / "python"
    calls = tmp_path / "calls"
    path.write_text(
        f"""#!/bin/sh
echo "$(basename "$0") $*" >> "{calls}"
case "$*" in
  "-m venv"*) mkdir -p .venv/bin && cp "{path}" .venv/bin/python && cp "{path}" .venv/bin/uv ;;
esac
[ ! -e "{tmp_path}/fault" ] || case "$(basename "$0") $*" in *"$(cat "{tmp_path}/fault")"*) exit 1
esac
"""
    )
    path.chmod(0o755)
    return path


def test_make_help_lists_the_targets():
    listed = make(ROOT).stdout
    for target in ("replicate", "smoke", "test", "lint", "format", "bench", "clean", "distclean"):
        assert f"make {target} " in listed


def test_settings_reach_the_workflow(project):
    (project / ".venv").mkdir()
    planned = make(project, "-n", "replicate", "PRESET=cifar10_small", "SET=data.path=x a.b=1")
    last = planned.stdout.splitlines()[-1]
    assert last == 'snakemake --cores all --config preset=cifar10_small set="data.path=x a.b=1"'
    assert make(project, "-n", "smoke").stdout.endswith("--config preset=smoke \n")


def test_unsupported_python_gets_one_line(project):
    refused = make(project, ".venv", "PYTHON=false")
    assert refused.returncode == 2
    lines = [line for line in refused.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(lines) == 1 and "3.11 or 3.12" in lines[0] and "make PYTHON=" in lines[0]
    assert not (project / ".venv").exists()


def test_venv_is_made_once_and_again_when_stale_or_moved(project, interpreter):
    stamp = project / ".venv/.installed"
    chosen = f"PYTHON={interpreter}"
    assert make(project, ".venv", chosen).returncode == 0
    assert stamp.read_text() == f"{project}\n"
    assert make(project, "-q", ".venv", chosen).returncode == 0
    for name in ("envs/bootstrap.lock", "envs/requirements.lock", "pyproject.toml"):
        later = stamp.stat().st_mtime + 5
        os.utime(project / name, (later, later))
        assert make(project, "-q", ".venv", chosen).returncode == 1, name
        os.utime(project / name, (0, 0))
    moved = project.rename(project.with_name("moved project"))
    assert make(moved, "-q", ".venv", chosen).returncode == 1


def test_update_keeps_venv_and_interruption_makes_it_anew(project, interpreter):
    calls = interpreter.with_name("calls")
    chosen = f"PYTHON={interpreter}"
    make(project, ".venv", chosen)
    os.utime(project / ".venv/.installed", (0, 0))
    calls.unlink()
    assert make(project, ".venv", chosen).returncode == 0
    assert "-m venv" not in calls.read_text()
    (project / ".venv/.installed").unlink()
    assert make(project, ".venv", chosen).returncode == 0
    assert "-m venv --clear .venv" in calls.read_text()


@pytest.mark.parametrize("fault", ["bootstrap.lock", "uv pip install"])
def test_pip_takes_over_when_uv_cannot_be_had(project, interpreter, fault):
    interpreter.with_name("fault").write_text(fault)
    done = make(project, ".venv", f"PYTHON={interpreter}")
    assert done.returncode == 0 and "trying pip" in done.stderr
    assert re.search(
        r"python -m pip install .*--require-hashes -r envs/requirements\.lock",
        interpreter.with_name("calls").read_text(),
    )


@pytest.mark.parametrize("fault", ["-m venv", "requirements.lock", "--editable"])
def test_failed_set_up_never_looks_whole(project, interpreter, fault):
    interpreter.with_name("fault").write_text(fault)
    assert make(project, ".venv", f"PYTHON={interpreter}").returncode == 2
    assert not (project / ".venv/.installed").exists()
    interpreter.with_name("fault").unlink()
    assert make(project, "-q", ".venv", f"PYTHON={interpreter}").returncode == 1


def test_clean_keeps_the_reference_results(project):
    for name in ("reference/a.csv", "smoke/tables/b.csv", "bench/c.csv"):
        (project / "results" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "results" / name).touch()
    (project / ".venv").mkdir()
    assert make(project, "clean").returncode == 0
    assert [p.name for p in (project / "results").iterdir()] == ["reference"]
    assert (project / "results/reference/a.csv").exists() and (project / ".venv").exists()
