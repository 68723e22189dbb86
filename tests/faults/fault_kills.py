"""SIGKILL at random moments: what stands is whole, and the same command ends with the same bits."""

import time

import pytest
from harness import halves, moments

#: How often each stage is killed.
KILLS = {
    "data": 5,
    "train block0": 20,
    "assemble": 20,
    "sample": 20,
    "floor": 5,
    "score": 20,
    "tables": 5,
}


@pytest.mark.parametrize(("name", "kills"), KILLS.items())
def test_killed_at_random_moments(sweep, faults, name, kills):
    sweep.remove(name)
    took = sweep.run(name).seconds
    assert sweep.lost(name) == 0
    sweep.remove(name)
    with faults("SIGKILL", name) as row:
        # A job that ends before its moment was not killed: another moment is drawn for it. A
        # killed training goes on where it was, so short moments reach every part of it.
        longest = took / 2 if name.startswith("train") else took
        for moment in moments(name, 20 * kills, longest):
            process = sweep.start(name)
            time.sleep(moment)
            process.kill()
            done = process.wait()
            assert done.code in (0, -9), done.text
            if done.code == 0:
                assert sweep.lost(name) == 0
                sweep.remove(name)
                continue
            row.hit()
            assert not sweep.different(name), "a half-written file bears a name that is read"
            if row["times"] == kills:
                break
        assert row["times"] == kills
        assert sweep.run(name).code == 0
        row["lost"] = sweep.lost(name)
        assert not halves(sweep.root), "what killed jobs left was not tidied"
        sweep.finish()
        assert sweep.lost("tables") == 0


def test_an_orphan_and_its_successor(sweep, faults):
    """A sweep killed while its jobs live on, and started again: two processes train one part."""
    name = "train block0"
    with faults("two processes at once", name) as row:
        for _ in range(5):
            sweep.remove(name)
            orphan = sweep.start(name, log=sweep.root.parent / "orphan.txt")
            time.sleep(0.15)
            successor = sweep.start(name)
            row.hit()
            assert orphan.wait().code == 0
            done = successor.wait()
            assert done.code == 0, done.text
            assert "waiting for another process" in done.text
            assert "steps" not in done.text, "it trained what was trained already"
            row["lost"] += sweep.lost(name)
        sweep.remove(name)
        orphan = sweep.start(name, log=sweep.root.parent / "orphan.txt")
        time.sleep(0.3)
        successor = sweep.start(name)
        orphan.kill(), orphan.wait()
        row.hit()
        assert successor.wait().code == 0
        row["lost"] += sweep.lost(name)
