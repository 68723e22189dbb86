"""One job a card: locks that the kernel drops, shown with a pretend list of devices."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from diffusionblocks import devices
from diffusionblocks.device_claims import CLAIMED, claim, first_free, lock, lock_folder
from diffusionblocks.errors import UserError

CARDS = ["GPU-a", "GPU-b", "GPU-c"]

#: A job: claims a card, notes from when to when it worked on it, and ends.
JOB = """
import json, sys, time
from pathlib import Path
from diffusionblocks.device_claims import claim
cards, folder, seconds = json.loads(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
place = claim(cards, folder, lambda: time.sleep(0.01))
print(json.dumps([place, time.monotonic()]), flush=True)
time.sleep(seconds)
print(json.dumps([place, time.monotonic()]), flush=True)
"""


def start(folder, cards=CARDS, seconds=0.5):
    command = [sys.executable, "-c", JOB, json.dumps(cards), str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def first_line(job):
    return json.loads(job.stdout.readline())


@pytest.fixture(autouse=True)
def unclaimed(monkeypatch):
    monkeypatch.delenv(CLAIMED, raising=False)


@pytest.mark.slow
def test_jobs_spread_over_the_cards_and_never_share_one(tmp_path):
    jobs = [start(tmp_path) for _ in range(8)]
    held = {}
    for job in jobs:
        lines = [json.loads(line) for line in job.communicate(timeout=60)[0].splitlines()]
        assert job.returncode == 0
        held.setdefault(lines[0][0], []).append((lines[0][1], lines[1][1]))
    assert set(held) == {0, 1, 2}
    for spans in held.values():
        spans.sort()
        for (_, ended), (began, _) in zip(spans, spans[1:], strict=False):
            assert ended <= began, "two jobs on one card"


@pytest.mark.slow
def test_a_killed_job_leaves_its_card(tmp_path):
    holder = start(tmp_path, ["GPU-a"], 60)
    try:
        assert first_line(holder)[0] == 0
        assert lock("GPU-a", tmp_path) is None
        next_job = start(tmp_path, ["GPU-a"], 0)
        time.sleep(0.3)
        assert next_job.poll() is None, "it waits"
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    assert next_job.communicate(timeout=30)[0].startswith("[0,")


def test_the_first_free_card_is_taken_and_a_taken_one_waited_for(tmp_path):
    place, first = first_free(CARDS, tmp_path, pytest.fail)
    assert place == 0
    place, second = first_free(CARDS, tmp_path, pytest.fail)
    assert place == 1
    waits = []

    def free_the_second():
        waits.append(1)
        second.close()

    assert first_free(CARDS[:2], tmp_path, free_the_second)[0] == 1
    assert waits == [1]
    first.close()


def test_threads_of_one_process_do_not_share_a_card_either(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: first_free(CARDS, tmp_path, pytest.fail), range(3)))
    assert sorted(place for place, _ in found) == [0, 1, 2]
    for _, file in found:
        file.close()


def test_a_process_and_its_children_keep_one_card(tmp_path):
    environment = {}
    assert claim(CARDS, tmp_path, pytest.fail, environment) == 0
    assert claim(CARDS, tmp_path, pytest.fail, environment) == 0
    assert environment == {CLAIMED: "GPU-a"}
    # A child sees the card under the number that its own list gives it.
    assert claim(["GPU-b", "GPU-a"], tmp_path, pytest.fail, environment) == 1
    # A job that was started from a shell with another machine's card claims its own.
    assert claim(CARDS, tmp_path, pytest.fail, {CLAIMED: "GPU-x"}) == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another folder with TMPDIR"):
        lock("GPU-a", tmp_path / "file")


def test_a_job_on_cuda_works_on_the_card_it_claimed(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "cards", lambda: CARDS)
    monkeypatch.setattr(devices, "lock_folder", lambda: tmp_path)
    taken = lock("GPU-a", tmp_path)
    for wanted in ("auto", "cuda"):
        assert devices.choose_device(wanted) == torch.device("cuda", 1)
    assert devices.choose_device("cpu") == torch.device("cpu")
    taken.close()


def test_locks_are_the_machine_s_and_the_user_s():
    assert str(os.getuid()) in str(lock_folder())


def test_nobody_waits_for_a_card_where_there_is_none(tmp_path):
    with pytest.raises(UserError, match="counts no GPU"):
        first_free([], tmp_path, wait=lambda: pytest.fail("it waits"))
