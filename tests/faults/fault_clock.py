"""A clock that jumps: no number depends on it but times, and those stay finite."""

import datetime
import json
import math
import random
import time

import pytest

from diffusionblocks import provenance

DAY = 86_400.0


def jumpy() -> None:
    """From now on this process's clocks jump: the wall's both ways, the monotonic one forward."""
    rng, wall, steady, ahead = random.Random(0), time.time, time.monotonic, [0.0]

    def monotonic() -> float:
        if rng.random() < 0.05:
            ahead[0] += rng.uniform(0, DAY)
        return steady() + ahead[0]

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(time.time(), tz)

    time.time = lambda: wall() + rng.uniform(-DAY, DAY)
    time.monotonic = time.perf_counter = monotonic
    provenance.datetime = Jumping


def stopped() -> None:
    """From now on this process's clocks stand still."""
    now, steady = time.time(), time.monotonic()
    time.time = lambda: now
    time.monotonic = time.perf_counter = lambda: steady


def numbers(value):
    """Every number of a record."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [n for item in value for n in numbers(item)]
    return [value] if type(value) in (int, float) else []


@pytest.mark.parametrize("clock", [jumpy, stopped])
def test_a_clock_that_jumps(sweep, faults, clock):
    names = ["data", "train block0", "assemble", "sample", "floor", "score", "tables"]
    with faults(f"clock {clock.__name__}", "every stage") as row:
        for name in names:
            sweep.remove(name)
            done = sweep.run(name, clock)
            assert done.code == 0, done.text
            row.hit()
            row["lost"] += sweep.lost(name)
            for path in sweep.stage(name).outputs:
                if path.suffix == ".json":
                    record = json.loads(path.read_text())
                    assert all(map(math.isfinite, numbers(record)))
                    assert record.get("seconds", 0) >= 0


def test_a_clock_that_jumps_between_a_kill_and_its_resumption(sweep, faults):
    name, state = "train block0", sweep.root / "state/block0"
    with faults("clock jumpy", f"resumed {name}") as row:
        sweep.remove(name)
        process = sweep.start(name)
        while not (state / "state.json").exists():
            pass
        process.kill(), process.wait()
        assert sweep.run(name, jumpy).code == 0
        row.hit()
        row["lost"] = sweep.lost(name)
