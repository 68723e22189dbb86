"""Whole sweeps on a pretended CUDA device: every tensor where it belongs, the CPU's numbers."""

import argparse
import contextlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from languages import LANGUAGE, write_preset
from papers import autoencoder, image_folder, tiny_latents
from pretend_cuda import DevicesDiffer, pretend_cuda
from waiting import NoWaiting

from diffusionblocks.config import load_preset
from diffusionblocks.files import read_json
from diffusionblocks.paper.advance import advance
from diffusionblocks.paper.image_pieces import image_pieces
from diffusionblocks.paper.text_pieces import text_pieces
from diffusionblocks.tensors import load_tensors

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def test_tensors_of_two_devices_are_found():
    with pretend_cuda() as device:
        x = torch.arange(3.0, device=device)
        layer = torch.nn.Linear(3, 2).to(device)
        layer(x).sum().backward()
        assert x.device == layer.weight.grad.device == device
        assert (x + 1).tolist() == [1, 2, 3] and x.sum().item() == 3
        assert type(x.cpu()) is torch.Tensor and x.cpu().numpy().sum() == 3
        for wrong in (lambda: x + torch.ones(3), lambda: layer(torch.ones(3))):
            with pytest.raises(DevicesDiffer):
                wrong()
        with pytest.raises((RuntimeError, TypeError)):
            x.numpy()
    assert torch.arange(3.0).device.type == "cpu" and not torch.cuda.is_available()


def quiet(label):
    return lambda *progress: None


def near(a, b, name):
    a, b = (load_tensors(folder / name) for folder in (a, b))
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=2e-3, atol=2e-5)


def scores(folder, name):
    rows = read_json(folder / name / "scores.json")["scores"]
    return {(r["metric"], r["sampling"], r.get("split")): r["value"] for r in rows}


@pytest.mark.parametrize(
    "own",
    [
        [],
        ["compute.data=host", "training.accumulation=2", "training.activation_checkpointing=true",
         "sampling.plain.guidance=2.0", "sampling.plain.solver=heun",
         "compute.deterministic=true"],
        ["training.precision=bf16", "sampling.plain.precision=bf16",
         "training.optimizer_state=offloaded"],
    ],
    ids=["plain", "frugal", "bf16"],
)  # fmt: skip
def test_an_image_sweep(tiny, tmp_path, monkeypatch, own):
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: None)
    folders = {}
    for device in ("cpu", "cuda"):
        preset = tiny(
            f"compute.device={device}", "training.iterations=3", "evaluation.reference_samples=40",
            "evaluation.validation_samples=12", *own,
        )  # fmt: skip
        names = [run.name for run in preset.runs()]
        folders[device] = tmp_path / device
        pieces = image_pieces(preset, folders[device], names, quiet)
        with pretend_cuda() if device == "cuda" else contextlib.nullcontext():
            assert advance(pieces, 1e6, say=lambda line: None)
    record = read_json(folders["cuda"] / "runs" / names[0] / "block0.json")
    assert record["provenance"]["device"] == "a pretended device"
    if any("bf16" in setting for setting in own):
        return  # rounds elsewhere
    for name in names:
        here, there = (folders[d] / "runs" / name for d in ("cpu", "cuda"))
        near(here, there, "all.safetensors" if "interleaved" in name else "block0.safetensors")
        assert scores(here.parent, name) == pytest.approx(scores(there.parent, name), rel=0.02)


def test_a_sweep_of_latents(tmp_path):
    pytest.importorskip("diffusers")
    images, weights = image_folder(tmp_path / "images", 3), autoencoder(tmp_path / "autoencoder")
    file, _ = tiny_latents(tmp_path, images, weights)
    folders = {}
    for device in ("cpu", "cuda"):
        preset = load_preset(file, [f"compute.device={device}", "evaluation.reference_samples=4"])
        folders[device] = tmp_path / device
        pieces = image_pieces(preset, folders[device], ["end_to_end-s0"], quiet)
        with pretend_cuda() if device == "cuda" else contextlib.nullcontext():
            assert advance(pieces, 1e6, say=lambda line: None)
    near(*folders.values(), "runs/end_to_end-s0/block0.safetensors")
    encoded = (np.load(f / "data/train_latents.npy").astype("f") for f in folders.values())
    np.testing.assert_allclose(*encoded, atol=2e-3)


@pytest.mark.parametrize(
    "own",
    [
        [],
        ["language.generation.plain.residency=one_block", "language.training.precision=bf16",
         "language.training.optimizer_state=offloaded",
         "language.training.activation_checkpointing=true"],
    ],
    ids=["plain", "frugal"],
)  # fmt: skip
def test_a_language_sweep(tmp_path, own):
    plain = LANGUAGE["generation"]["plain"] | {"prompts": 20}  # as many texts as MAUVE asks for
    file = write_preset(tmp_path / "text.yaml", generation={"plain": plain})
    names = ["end_to_end-s0", "independent-B2-equal_mass-overlap0-frozen-s0",
             "interleaved-B3-equal_mass-overlap0-joint-s0"]  # fmt: skip
    for device in ("cpu", "cuda"):
        language = load_preset(file, [f"language.compute.device={device}", *own]).language
        pieces = text_pieces(language, tmp_path / device, names, quiet)
        if device == "cpu" and own:
            continue  # bf16 rounds elsewhere
        with pretend_cuda() if device == "cuda" else contextlib.nullcontext():
            assert advance(pieces, 1e6, say=lambda line: None)
    if own:
        return
    for name in names:
        here, there = (tmp_path / d / "runs" / name for d in ("cpu", "cuda"))
        near(here, there, "all.safetensors" if "interleaved" in name else "block0.safetensors")
        for key, value in scores(here.parent, name).items():
            if key[0] in ("next_token_cross_entropy", "likelihood_bound", "bits_per_character"):
                assert scores(there.parent, name)[key] == pytest.approx(value, rel=1e-3)


@pytest.fixture
def bench_gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_gpu

    yield bench_gpu
    for name in ("bench_gpu", "gpu_cases", "timing"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bench_gpu_measures_every_kind_of_network(bench_gpu, tmp_path, capsys, precision):
    networks = [case.name for case in bench_gpu.TINY_CASES]
    output = tmp_path / "gpu.csv"
    with pretend_cuda():
        code = bench_gpu.main([
            "--networks", *networks, "--compile", "off", "--steps", "2", "--peak", "1e12",
            "--precision", precision, "--output", str(output),
        ])  # fmt: skip
    assert code == 0
    rows = output.read_text().splitlines()
    assert len(rows) == 1 + 3 * len(networks)
    assert all(row.endswith(",a pretended device") for row in rows[1:])
    assert "tokens/s" in (told := capsys.readouterr().out) and "images/s" in told
    assert all(f"{name}_step_to_minimal_loop" in told for name in networks)


def test_bench_gpu_runs_on_the_cpu_and_refuses_to_without_a_gpu(bench_gpu, tmp_path, capsys):
    output = tmp_path / "gpu.csv"
    cpu = ["--device", "cpu", "--steps", "1", "--output", str(output)]
    assert bench_gpu.main(cpu) == 0
    assert output.read_text().count("\n") == 1 + 3 * len(bench_gpu.TINY_CASES)
    if not torch.cuda.is_available():
        assert bench_gpu.main([]) == 2
        assert "found no CUDA device" in capsys.readouterr().err


def test_bench_gpu_times_the_published_networks(bench_gpu):
    options = argparse.Namespace(batch=None, precision="bf16", compile="default", device="cuda")
    for case in bench_gpu.CASES:
        whole, block = case.run(1, options), case.run(case.blocks, options)
        assert whole.network.layers == (24 if case.name == "DiT-L/2" else 12)
        assert [len(part) for part in block.layer_ranges()] == (
            [whole.network.layers // case.blocks] * case.blocks
        )
        assert whole.training.precision == "bf16" and whole.training.compile


@pytest.mark.parametrize("name", ["GPT", "tiny-gpt"])
def test_operations_of_language_networks_have_a_closed_form(bench_gpu, name):
    options = argparse.Namespace(batch=None, precision="bf16", compile="off", device="cpu")
    case = bench_gpu.KNOWN[name]
    run, block = case.run(1, options), case.run(case.blocks, options)
    n, tokens = run.network, case.examples(run)
    assert tokens == case.batch * n.context_length == case.examples(block)
    # Two multiplications and additions forward for every weight, twice that backward.
    inner = {"GPT": 2048, "tiny-gpt": 48}[name]
    weights = n.layers * (4 * n.width**2 + 3 * n.width * inner) + n.width * case.vocabulary
    # Attention computes its scores once more backward.
    attention = n.layers * 4 * n.context_length * n.width * 3.5
    assert case.flops(run) == pytest.approx(tokens * (6 * weights + attention), rel=0.01)
    # Else a GPU would have to run blocks at more FLOP/s than end to end to meet the target.
    assert name != "GPT" or case.blocks * case.flops(block) < case.most_time * case.flops(run)
    assert block.overlap == 0.1 and block.embedding == "frozen"


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_bench_gpu_compiles_the_loop_by_hand_as_the_step(bench_gpu, monkeypatch, tmp_path, mode):
    told = []

    def compiled(network, **settings):
        told.append(settings)
        return network

    monkeypatch.setattr(torch, "compile", compiled)
    options = ["--device", "cpu", "--steps", "1", "--output", str(tmp_path / "gpu.csv")]
    assert bench_gpu.main([*options, "--networks", "tiny", "tiny-gpt", "--compile", mode]) == 0
    assert told == 2 * 3 * [{"mode": mode, "dynamic": False}]


def test_no_step_of_bench_gpu_waits_for_the_device(bench_gpu, tmp_path):
    options = argparse.Namespace(batch=None, precision="bf16", compile="off", device="cpu")
    for case in bench_gpu.TINY_CASES:
        case.write(tmp_path / case.name)
        for make, blocks in (
            (bench_gpu.suite_step, 1), (bench_gpu.suite_step, case.blocks), (case.plain_step, 1),
        ):  # fmt: skip
            step = make(case.run(blocks, options), tmp_path / case.name, torch.device("cpu"))
            step()  # moments are made and bounds are worked out once
            with NoWaiting():
                step()


def test_bench_gpu_goes_on_after_a_network_that_does_not_fit(
    bench_gpu, monkeypatch, tmp_path, capsys
):
    measure = bench_gpu.measure

    def small(case, *others):
        if case.name == "tiny":
            raise torch.OutOfMemoryError
        return measure(case, *others)

    monkeypatch.setattr(bench_gpu, "measure", small)
    output = tmp_path / "gpu.csv"
    options = ["--device", "cpu", "--steps", "1", "--output", str(output)]
    assert bench_gpu.main([*options, "--networks", "tiny", "tiny-gpt"]) == 1
    assert "--networks tiny --batch" in capsys.readouterr().err
    assert [row.split(",")[0] for row in output.read_text().splitlines()[1:]] == ["tiny-gpt"] * 3


def test_peaks_are_those_of_the_card_and_the_precision(bench_gpu):
    rate = bench_gpu.peak_rate
    assert rate("NVIDIA H200", "bf16") == rate("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert rate("NVIDIA H100 PCIe", "bf16") < rate("NVIDIA H200 NVL", "bf16") < 989e12
    # By another unit, which rounds less or more as compute.tf32 has it.
    assert rate("NVIDIA H200", "fp32") == rate("CPU", "bf16") == 0
