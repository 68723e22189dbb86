"""The fast way through a training step: nothing waits for the device, options do what they say."""

import shutil
from functools import partial

import pytest
import torch
from languages import write_preset
from waiting import NoWaiting, Waits

from diffusionblocks import devices, jobs, language_jobs
from diffusionblocks.config import load_preset
from diffusionblocks.data.sources import PixelSource
from diffusionblocks.devices import RESIDENT_SHARE, lies_on_device, prepare, upload
from diffusionblocks.errors import UserError
from diffusionblocks.parts import part_of
from diffusionblocks.tasks import TASKS
from diffusionblocks.tensors import load_tensors
from diffusionblocks.training.loop import step_losses
from diffusionblocks.training.step import new_state, train_step


def stepper(run, task, device="cpu"):
    """One whole step of a job, as the loop does it: batch, losses, update."""
    part = part_of(run, run.parts[0])
    network = task.network(part.depth, part.name).train()
    settings = run.training
    state = new_state(network, settings.betas, settings.weight_decay, settings.optimizer == "fused")

    def step(iteration, wrap=lambda loss: loss):
        batch = task.batch(0, iteration)
        losses = step_losses(run, part, task, network, batch, 0)
        return train_step(state, [wrap(x) for x in losses], 1e-3, 0.9, settings.clip_norm)

    return step


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("where", ["device", "host"])
def test_a_step_never_waits_for_the_device(tiny, task_of, precision, where):
    run = tiny(f"training.precision={precision}", f"compute.data={where}").runs()[0]
    step = stepper(run, task_of(run))
    step(0)  # moments are made and bounds are worked out once
    with NoWaiting():
        step(1)


@pytest.mark.parametrize("name", ["end_to_end-s0", "independent-B3-equal_mass-overlap0-frozen-s0"])
def test_a_language_step_never_waits_for_the_device(tmp_path, name):
    overrides = ["language.training.precision=bf16"]
    language = load_preset(write_preset(tmp_path / "text.yaml"), overrides).language
    language_jobs.prepare_data(language, tmp_path / "data")
    run = language.run(name)
    step = stepper(run, TASKS[run.task](run, tmp_path / "data", torch.device("cpu")))
    step(0)
    with NoWaiting():
        step(1)


@pytest.mark.parametrize("fault", ["item", "nonzero", "mask"])
def test_waiting_is_found(tiny, task_of, fault):
    run = tiny().runs()[0]
    step = stepper(run, task_of(run))
    step(0)

    def slow(loss):
        value = loss()
        if fault == "item":
            return value * (1 if value.mean().item() > -1 else 0)
        return value[value > -1] if fault == "mask" else value[(value > -1).nonzero()[:, 0]]

    with NoWaiting(), pytest.raises(Waits):
        step(1, lambda loss: partial(slow, loss))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("where", ["device", "host"])
def test_a_step_never_waits_on_cuda(tiny, digits, where):
    run = tiny("compute.device=cuda", f"compute.data={where}", "training.precision=bf16").runs()[0]
    step = stepper(run, TASKS[run.task](run, digits, torch.device("cuda")))
    step(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_where_images_lie_does_not_change_a_batch(tiny, task_of):
    batches = []
    for where in ("auto", "device", "host"):
        task = task_of(tiny(f"compute.data={where}").runs()[0])
        assert isinstance(task.source, PixelSource)
        batches.append(task.batch(0, 3))
    for other in batches[1:]:
        assert all(torch.equal(a, b) for a, b in zip(batches[0], other, strict=True))


def test_small_sets_lie_on_the_device(monkeypatch):
    class Properties:
        total_memory = 1000

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    most = int(1000 * RESIDENT_SHARE)
    assert lies_on_device("auto", most, cuda) and not lies_on_device("auto", most + 1, cuda)
    assert lies_on_device("device", 10**9, cuda) and not lies_on_device("host", 1, cuda)
    assert lies_on_device("auto", 10**9, cpu)


def test_uploads_to_cuda_are_pinned_and_do_not_wait(monkeypatch):
    told = []

    class Host:
        def pin_memory(self):
            told.append("pinned")
            return self

        def to(self, device, **keywords):
            told.append((device.type, keywords))

    upload(Host(), torch.device("cuda"))
    assert told == ["pinned", ("cuda", {"non_blocking": True})]
    here = torch.arange(3)
    assert upload(here, torch.device("cpu")) is here


def test_tf32_and_determinism_reach_pytorch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(devices, "cards", lambda: ["a card"])
    monkeypatch.setattr(devices, "claim", lambda cards, folder: 0)
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        for wanted in (False, True):
            assert prepare("cuda", 1, tf32=wanted).type == "cuda"
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (wanted, wanted)
        assert not asked
        prepare("cuda", 1, deterministic=True)
        assert asked == [True]
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.compile_mode=fast", "compile_mode"),
        ("training.compile_mode=max-autotune", "set compile to true"),
        (
            "training={iterations: 1, batch_size: 4, learning_rate: 1, accumulation: 2, "
            "ema_halflife_samples: 1, compile: true, compile_mode: reduce-overhead}",
            "lose gradients between microbatches",
        ),
        ("compute.data=disk", "compute.data"),
        ("compute.tf32=maybe", "compute.tf32"),
        ("sampling.plain.precision=fp8", "precision"),
    ],
)
def test_options_are_validated(tiny, override, says):
    with pytest.raises(UserError, match=says):
        tiny(override)


needs_compiler = pytest.mark.skipif(
    not shutil.which("g++"), reason="torch.compile needs a C++ compiler"
)


@pytest.fixture
def one_compiler():
    """No pool of processes for one layer."""
    import torch._inductor.config as inductor

    with inductor.patch(compile_threads=1):
        yield


@needs_compiler
def test_a_compiled_language_job_trains_the_same_network(one_compiler, tmp_path):
    file, found = write_preset(tmp_path / "text.yaml"), []
    for compiled in (False, True):
        language = load_preset(file, [f"language.training.compile={compiled}"]).language
        run, folder = language.run("independent-B3-equal_mass-overlap0-frozen-s0"), tmp_path / "d"
        language_jobs.prepare_data(language, folder)
        output = tmp_path / f"{compiled}" / "block1.safetensors"
        jobs.train_part(run, "block1", folder, output, tmp_path / f"{compiled}-s", lambda *a: None)
        found.append(load_tensors(output))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-5)


@needs_compiler
def test_a_compiled_job_trains_the_same_network(one_compiler, tiny, digits, tmp_path):
    small = ("network.layers=1", "sweep.variants=[{method: end_to_end}]", "training.iterations=2")
    found = []
    for compiled in (False, True):
        run = tiny(*small, f"training.compile={compiled}").runs()[0]
        output = tmp_path / f"{compiled}" / "block0.safetensors"
        jobs.train_part(run, "block0", digits, output, tmp_path / f"{compiled}-s", lambda *a: None)
        found.append(load_tensors(output))
    eager, compiled = found
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-5)


def test_bf16_samples_are_near_those_of_fp32(tiny, digits, tmp_path):
    from diffusionblocks.files import write_json
    from diffusionblocks.manifest import assemble

    preset = tiny("training.iterations=3")
    run = preset.runs()[0]
    jobs.train_part(
        run, "block0", digits, tmp_path / "block0.safetensors", tmp_path / "s", lambda *a: None
    )
    write_json(tmp_path / "manifest.json", assemble(run, tmp_path))
    images = {}
    for precision in ("fp32", "bf16"):
        settings = tiny(f"sampling.plain.precision={precision}").sampling["plain"]
        output = tmp_path / f"{precision}.safetensors"
        jobs.sample_run(tmp_path / "manifest.json", settings, output, lambda *a: None)
        images[precision] = load_tensors(output)["images"].float()
    difference = (images["fp32"] - images["bf16"]).abs()
    assert 0 < difference.mean() < 8
