"""Files are whole or absent, whatever happens while they are written."""

import os
import subprocess

import pytest
import torch

from diffusionblocks.errors import UserError
from diffusionblocks.files import atomic_path, read_json, sha256, write_json, write_text
from diffusionblocks.tensors import load_tensors, save_tensors


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_round_trip_and_digest(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"x": [1, 2.5, "σ"]})
    assert read_json(path) == {"x": [1, 2.5, "σ"]}
    expected = subprocess.run(["sha256sum", path], capture_output=True, text=True).stdout.split()[0]
    assert sha256(path) == expected


def test_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_truncated_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, ')
    with pytest.raises(UserError, match="not whole JSON.*delete it"):
        read_json(tmp_path / "a.json")


def test_truncated_tensors_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.arange(100)}, {"k": "v"})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_tensors(path)
    with pytest.raises(UserError, match="does not exist"):
        load_tensors(tmp_path / "b.safetensors")


@pytest.fixture
def full_disk(tmp_path):
    """A real file system of 64 KiB, or skip."""
    mount = tmp_path / "full"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mount], capture_output=True
    )
    if done.returncode:
        pytest.skip("mounting a small file system needs root")
    yield mount
    subprocess.run(["umount", mount], check=True)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(full_disk):
    with pytest.raises(UserError, match="cannot write .*free space"):
        save_tensors(full_disk / "a.safetensors", {"a": torch.zeros(100_000)}, {})
    with pytest.raises(UserError, match="cannot write .*free space"):
        write_text(full_disk / "a.txt", "x" * 200_000)
    assert os.listdir(full_disk) == []
    write_text(full_disk / "small.txt", "fits")
