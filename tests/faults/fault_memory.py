"""Too little memory: an allocation that is refused, and the kernel's killer."""

import os
import resource
import signal
from pathlib import Path

import pytest
from harness import Sweep, halves, write_preset

CGROUPS = Path("/sys/fs/cgroup")
MIB = 1 << 20


@pytest.fixture
def large(whole, tmp_path):
    """The sweep with batches that need hundreds of MiB, and what its first part should be."""
    changes = {
        "training": {"batch_size": 6_000, "iterations": 2, "checkpoint_every": 1},
        # Tensors of tens of MiB: smaller ones may fit into what the allocator kept.
        "sampling": {"plain": {"samples": 40_000, "steps": 2, "batch_size": 40_000}},
    }
    sweep = Sweep(write_preset(tmp_path / "large.yaml", **changes), tmp_path / "large", whole.root)
    for name in ("train block0", "train block1", "assemble", "sample"):
        assert sweep.run(name).code == 0
    sweep.expected = {stage.name: sweep.contents(stage.name) for stage in sweep.stages}
    return sweep


def address_space() -> int:
    """Bytes of address space that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def at_most(more: int):
    """A limit of that many further bytes, for a new process."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + more,) * 2)

    return limit


@pytest.mark.parametrize("name", ["train block0", "sample"])
def test_memory_that_is_refused(large, faults, name):
    with faults("allocation refused", name) as row:
        for more in (4, 8, 16, 32):
            large.remove(name)
            done = large.run(name, at_most(more * MIB))
            if done.code == 0:  # it was enough
                assert large.lost(name) == 0
                break
            assert done.code == 2, done.text
            assert "out of memory" in done.line
            row.hit(done.line)
            assert not large.contents(name) and not halves(large.root)
            assert large.run(name).code == 0
            row["lost"] += large.lost(name)
        assert row["times"] >= 2


def group_of(limit: int) -> Path:
    """A control group of that many bytes, or skip."""
    version_1 = (CGROUPS / "memory").is_dir()
    folder = CGROUPS / ("memory" if version_1 else "") / f"diffusionblocks-faults-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(limit))
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"a memory limit needs root and control groups ({error.strerror})")
    return folder


def test_the_kernels_killer(large, faults):
    name = "train block0"
    with faults("killed by the kernel for memory", name) as row:
        folder = group_of(48 * MIB)
        try:
            for _ in range(3):
                large.remove(name)
                done = large.run(
                    name, lambda: (folder / "cgroup.procs").write_text(str(os.getpid()))
                )
                assert done.code == -signal.SIGKILL, done.text
                row.hit()
                assert not large.contents(name)
                assert large.run(name).code == 0
                row["lost"] += large.lost(name)
                assert not halves(large.root)
        finally:
            folder.rmdir()
