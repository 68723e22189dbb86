"""Training uses what the plan promises: the real job's peak, and offloaded optimiser state."""

import time

import pytest
import torch

from diffusionblocks.files import read_json
from diffusionblocks.jobs import train_part
from diffusionblocks.memory.allocator import AllocatorPeak, JobPeak
from diffusionblocks.memory.plan import plan
from diffusionblocks.memory.point import from_preset
from diffusionblocks.parts import part_of
from diffusionblocks.training.loop import train
from diffusionblocks.training.offload import LARGE, HostState
from diffusionblocks.training.step import new_state, train_step

CPU = torch.device("cpu")


def run_named(preset, start):
    return next(r for r in preset.runs() if r.name.startswith(start))


@pytest.mark.parametrize(
    "start,method,blocks",
    [
        ("end_to_end", "end_to_end", 1),
        ("independent-B3", "blockwise_independent", 3),
        ("interleaved-B3", "blockwise_interleaved", 3),
    ],
)
def test_a_real_jobs_peak_is_the_plans(tiny, digits, tmp_path, start, method, blocks):
    """The job also holds its data set and a few numbers of the loop, which no plan knows."""
    preset = tiny("training.batch_size=64")
    run = run_named(preset, start)
    path = tmp_path / "part.safetensors"
    train_part(run, run.parts[0], digits, path, tmp_path / "state", lambda *a: None)
    metrics = read_json(path.with_suffix(".json"))
    assert (
        metrics["peak_memory_kind"]
        == f"cpu allocator, {2 if blocks == 1 or start.startswith('ind') else 4} steps"
    )
    planned = plan(from_preset(preset, "tiny", method=method, blocks=blocks)).peak
    data = 1200 * (8 * 8 + 8)
    assert 0 <= metrics["peak_memory_bytes"] - planned <= data + 4096
    assert metrics["peak_resident_bytes"] > metrics["peak_memory_bytes"]


def test_peaks_are_counted_from_the_entry():
    before = torch.empty(1000)
    with AllocatorPeak(CPU) as allocator:
        del before
        a = torch.empty(300, dtype=torch.uint8)
        del a
        b = torch.empty(200, dtype=torch.uint8)
    assert allocator.peak == 300
    assert len(b) == 200


def test_a_job_that_ends_early_still_has_a_peak():
    with JobPeak(CPU, steps=5) as memory:
        torch.empty(64, dtype=torch.uint8)
        memory.after_step()
    assert memory.columns() == {
        "peak_memory_bytes": 64,
        "peak_memory_kind": "cpu allocator, 1 steps",
    }


def test_counting_stops_when_memory_repeats():
    with JobPeak(CPU, steps=1, clock=iter([5.0, 7.5]).__next__) as memory:
        memory.after_step()
        torch.empty(64, dtype=torch.uint8)
        memory.after_step()
    assert memory.columns()["peak_memory_bytes"] == 0
    assert memory.seconds == 2.5


# ------------------------------------------------------------------ offloading


def trained(preset, task_of, folder):
    run = run_named(preset, "interleaved-B3")
    task = task_of(run)
    part = part_of(run, "all")
    return train(run, part, task, task.ranges, folder, time.monotonic, lambda *a: None).ema


def test_offloaded_state_gives_the_same_bits(tiny, task_of, tmp_path):
    resident = trained(tiny(), task_of, tmp_path / "a")
    offloaded = trained(tiny("training.optimizer_state=offloaded"), task_of, tmp_path / "b")
    assert all(torch.equal(resident[name], offloaded[name]) for name in resident)


def test_an_offloaded_run_resumes_with_the_same_bits(tiny, task_of, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusionblocks.training.loop.LOOK_EVERY", 1)
    preset = tiny("training.optimizer_state=offloaded")
    run = run_named(preset, "interleaved-B3")
    straight = trained(preset, task_of, tmp_path / "a")

    def stop(done, total, loss):
        if done == 5:
            raise KeyboardInterrupt

    task, part = task_of(run), part_of(run, "all")
    with pytest.raises(KeyboardInterrupt):
        train(run, part, task, task.ranges, tmp_path / "b", time.monotonic, stop)
    resumed = trained(preset, task_of, tmp_path / "b")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_only_idle_layers_moments_leave_the_device(tiny, task_of):
    run = run_named(tiny(), "interleaved-B3")
    task, part = task_of(run), part_of(run, "all")
    state = new_state(task.network(6, "all").train(), (0.9, 0.999), 0.0)
    host = HostState(state, part, offloaded=True)

    def step(block):
        with host.active(block):
            batch = task.batch(block, 0)
            train_step(
                state, [lambda: task.loss(state.network, batch, part.layers[block])], 1e-3, 0.9, 1.0
            )
            on_host = {m.data_ptr() for m in host.copies}
            for name, moments in state.optimizer.moments.items():
                layer = int(name.split(".")[1]) if name.startswith("layers.") else None
                idle = layer is not None and layer not in part.layers[block]
                assert all((moments[key].data_ptr() in on_host) == idle for key in LARGE), name

    for block in (0, 1, 2, 1, 1):
        step(block)
    layer_names = [n for n in state.optimizer.moments if n.startswith("layers.")]
    assert len(host.copies) == 2 * len(layer_names)
    assert all(
        state.optimizer.moments[n][key].data_ptr() in {m.data_ptr() for m in host.copies}
        for n in layer_names
        for key in LARGE
    )


def test_a_job_of_one_block_never_offloads(tiny, task_of):
    run = run_named(tiny(), "independent-B3")
    part = part_of(run, "block0")
    state = new_state(task_of(run).network(2, "x"), (0.9, 0.999), 0.0)
    host = HostState(state, part, offloaded=True)
    host.release(part.blocks)
    assert host.copies == []
