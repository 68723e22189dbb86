"""Shared fixtures: one thread, tiny presets, a prepared data set."""

from pathlib import Path

import pytest
import torch
import yaml
from tiny_preset import TINY

from diffusionblocks.config import load_preset
from diffusionblocks.data.images import prepare_images
from diffusionblocks.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
#: The files that take minutes, longest first: workers side by side then end at about one time.
LONG = ["test_workflow", "test_slurm", "test_language", "test_memory_plan", "test_paper_presets"]


@pytest.fixture(autouse=True)
def one_thread():
    """Bits must not depend on how many cores the machine has."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_file(tmp_path):
    """The tiny preset as a YAML file that a test may edit."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def tiny(tiny_file):
    """The tiny preset, with dotted overrides: tiny("training.iterations=3")."""
    return lambda *overrides: load_preset(tiny_file, overrides)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Folder of the prepared digits."""
    folder = tmp_path_factory.mktemp("digits")
    from diffusionblocks.config import DataConfig

    prepare_images(DataConfig(name="digits"), folder)
    return folder


@pytest.fixture
def task_of(digits):
    """The task of a run on the CPU."""
    return lambda run: TASKS[run.task](run, digits, torch.device("cpu"))


@pytest.fixture(scope="session")
def cifar10():
    """Folder with CIFAR-10's parquet files, or skip."""
    folder = ROOT.parent / "shared" / "data" / "cifar10"
    if not (folder / "train.parquet").is_file():
        pytest.skip("no local CIFAR-10 parquet files")
    return folder


def pytest_collection_modifyitems(items):
    """Long files first; within a file, and among the others, the order stays."""
    rank = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))
