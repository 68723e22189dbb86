"""A full disk and a read-only one: one line that says so, nothing false left, then it completes."""

import os
import shutil
import subprocess

import pytest
from harness import Sweep, halves

NAMES = ["data", "train block0", "assemble", "sample", "floor", "score", "tables"]


def on(folder, sweep, name) -> Sweep:
    """The sweep on another disk, without the outputs of one stage."""
    moved = sweep.copy(folder / "results")
    moved.remove(name)
    return moved


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def left(folder) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk(sweep, faults, disk, name):
    needed = sum(path.stat().st_size for path in sweep.stage(name).outputs)
    with faults("full disk", name) as row:
        folder = disk("size=64m")
        moved = on(folder, sweep, name)
        filler = folder / "filler"
        # Nothing left, then ever more, so that the disk fills up in ever later writes.
        for share in (0, 0.1, 0.3, 0.6, 0.9):
            keep = int(share * needed)
            with filler.open("wb") as file:
                file.write(bytes(left(folder)))
                file.truncate(file.tell() - keep)
            # The log lies on the full disk as well, as it does in a sweep.
            done = moved.run(name, log=folder / "log.txt")
            filler.unlink()
            assert not moved.different(name) and not halves(folder)
            if done.code == 0:  # what is written last may fit: blocks are larger than files
                assert moved.lost(name) == 0
                moved.remove(name)
                continue
            assert done.code == 2, done.text
            if share:
                row.hit(done.line if "diffusionblocks: " in done.text else "")
            else:
                row.hit()
            assert not moved.stage(name).outputs[-1].exists()
        assert row["times"] >= 1
        assert moved.run(name).code == 0
        row["lost"] = moved.lost(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_named(sweep, faults, disk, name, tmp_path):
    with faults("full disk, log elsewhere", name) as row:
        folder = disk("size=64m")
        moved = on(folder, sweep, name)
        filler = folder / "filler"
        filler.write_bytes(bytes(left(folder)))
        done = moved.run(name, log=tmp_path / "log.txt")
        assert done.code == 2, done.text
        row.hit(done.line)
        assert "free space" in done.line
        filler.unlink()
        assert moved.run(name).code == 0
        row["lost"] = moved.lost(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_read_only_disk(sweep, faults, disk, name):
    with faults("read-only results", name) as row:
        sweep.remove(name)
        folder = disk("bind", source=sweep.root, kind=())
        remount(folder, "ro,bind")
        blocked = Sweep(sweep.preset, folder, None, sweep.expected)
        done = blocked.run(name)
        assert done.code == 2, done.text
        row.hit(done.line)
        assert "Read-only" in done.line
        # Outputs that stand already are not touched either.
        sweep.finish()
        done = blocked.run(name)
        assert done.code == 2, done.text
        row.hit(done.line)
        assert blocked.lost(name) == 0
        remount(folder, "rw,bind")
        blocked.remove(name)
        assert blocked.run(name).code == 0
        row["lost"] = blocked.lost(name)


def test_a_folder_of_somebody_else(sweep, faults, tmp_path):
    """Modes instead of mounts: root obeys none, so the job runs as nobody."""
    name = "sample"
    with faults("folder of another user", name) as row:
        if os.getuid():
            pytest.skip("needs root, to become nobody")
        sweep.remove(name)
        for path in [sweep.preset, *tmp_path.rglob("*"), tmp_path]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        parent = tmp_path
        while parent != parent.parent:
            parent.chmod(parent.stat().st_mode | 0o011)
            parent = parent.parent
        sweep.preset.parent.chmod(0o755)
        for above in sweep.preset.parents:
            if above != above.parent:
                above.chmod(above.stat().st_mode | 0o011)

        def become_nobody():
            os.setgid(65534), os.setuid(65534)

        done = sweep.run(name, become_nobody)
        assert done.code == 2, done.text
        row.hit(done.line)
        assert "Permission denied" in done.line
        assert sweep.run(name).code == 0
        row["lost"] = sweep.lost(name)


def test_a_lock_in_a_folder_that_vanished(sweep, faults):
    """Somebody deletes the results while a job runs."""
    name = "train block0"
    with faults("results deleted under a job", name) as row:
        process = sweep.start(name)
        shutil.rmtree(sweep.root / "runs")
        row.hit()
        assert process.wait().code in (0, 2)
        sweep.finish()
        row["lost"] = sum(sweep.lost(stage.name) for stage in sweep.stages)
