"""The published recipes: what they say, and one real step of every kind of job at full size."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from papers import autoencoder, cifar10_folder, image_folder

from diffusionblocks.cli import main
from diffusionblocks.config import load_preset
from diffusionblocks.files import read_json
from diffusionblocks.paper.cost import COUNTS, cost, table
from diffusionblocks.tensors import load_tensors

ROOT = Path(__file__).resolve().parent.parent
PRESETS = ROOT / "workflow/config/presets"
#: As published, but for what a CPU and a test can do in a minute.
TINY = [
    "training.iterations=1", "training.batch_size=1", "training.compile=false",
    "training.precision=fp32", "compute.device=cpu", "compute.threads=1",
]  # fmt: skip
#: DiT-L/2 whole: weights, gradients, two moments and an average of 458 M numbers, and the rest.
WHOLE_BYTES = 11e9

WHOLE = """
import resource, sys, torch
from pathlib import Path
from diffusionblocks.config import load_preset
from diffusionblocks.parts import part_of
from diffusionblocks.tasks import TASKS
from diffusionblocks.training.loop import train
preset, data, state, *overrides = sys.argv[1:]
torch.set_num_threads(1)
run = load_preset(Path(preset), overrides).run("end_to_end-s0")
task = TASKS[run.task](run, Path(data), torch.device("cpu"))
done = train(run, part_of(run, "block0"), task, task.ranges, Path(state), lambda: 0.0,
             lambda *a: None)
assert done.history.shape == (1, 2) and done.history.isfinite().all()
print(done.parameters, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def published(name):
    return load_preset(PRESETS / f"{name}.yaml")


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads", "rate"),
    [("cifar10", 12, 384, 6, 1e-4), ("imagenet256", 24, 1024, 16, 5e-5)],
)
def test_recipes_are_the_published_ones(name, layers, width, heads, rate):
    preset = published(name)
    network, training = preset.network, preset.training
    assert (network.layers, network.width, network.heads) == (layers, width, heads)
    assert network.patch == 2 and network.mlp_ratio == 4
    assert (training.batch_size, training.learning_rate) == (512, rate)
    assert training.schedule == "constant" and training.label_dropout == 0.1
    epochs = training.iterations * training.batch_size / COUNTS[name][0]
    assert abs(epochs - 100) < 0.01
    (sampling,) = preset.sampling.values()
    assert (sampling.steps, sampling.guidance, sampling.samples) == (50, 2.0, 50_000)
    assert preset.noise.sigma_data == 0.5


@pytest.mark.parametrize(("name", "context"), [("lm1b", 256), ("openwebtext", 3072)])
def test_language_recipes_are_the_published_ones(name, context):
    language = published(name).language
    network, training = language.network, language.training
    assert (network.layers, network.width, network.heads) == (12, 768, 12)
    assert network.context_length == context
    assert (training.batch_size, training.learning_rate) == (256, 3e-4)
    assert (training.schedule, training.warmup_iterations) == ("constant", 2500)
    first = next(iter(language.generation.values()))
    assert (first.prompts, first.continuations, first.new_tokens) == (1000, 5, 50)
    assert language.evaluation.mauve_scaling == 0.2
    assert ("blockwise_independent", 4) in {(run.method, run.blocks) for run in language.runs()}


def test_cifar10_holds_every_row_of_the_published_tables():
    runs = published("cifar10").runs()
    rows = {
        (run.blocks, run.partition, run.overlap, run.identity()["layers_per_block"]) for run in runs
    }
    ablations = {(B, "equal_mass", 0.0, "-".join([str(12 // B)] * B)) for B in (2, 3, 4, 6)}
    uneven = {
        (3, partition, 0.0, layers)
        for partition in ("equal_mass", "uniform_log_sigma")
        for layers in ("4-4-4", "3-6-3", "6-4-2", "2-4-6")
    }
    wanted = ablations | uneven | {(3, "equal_mass", 0.05, "4-4-4"), (1, None, 0.0, "12")}
    assert rows == wanted
    goals = ["end_to_end-s0", "independent-B3-equal_mass-overlap0-s0"]
    goals += ["independent-B3-uniform_log_sigma-overlap0-s0"]
    goals += [f"independent-B{B}-equal_mass-overlap0-s0" for B in (2, 4, 6)]
    names = [run.name for run in runs if run.seed == 0]
    assert names[:6] == goals


def call(*words):
    assert main([str(word) for word in words]) == 0


def steps(preset, run_name, data, folder, overrides, parts):
    """Train parts of a run for a step each; returns the losses."""
    select = ["--preset", PRESETS / f"{preset}.yaml", "--set", *overrides, "--run", run_name]
    losses = []
    for part in parts:
        output = folder / f"{part}.safetensors"
        call("train", *select, "--part", part, "--data", data, "--output", output,
             "--state", folder / "state")  # fmt: skip
        record = read_json(output.with_suffix(".json"))
        assert record["iterations"] == 1 and record["diverged_at"] is None
        losses.append(record["parameters"])
    return losses


@pytest.mark.slow
def test_one_real_step_of_every_kind_of_job_on_cifar10(tmp_path):
    files = cifar10_folder(tmp_path / "cifar10")
    overrides = [*TINY, f"data.path={files}"]
    overrides += ["sampling.guided.samples=1", "sampling.guided.steps=3"]
    select = ["--preset", PRESETS / "cifar10.yaml", "--set", *overrides]
    data = tmp_path / "data"
    call("data", *select, "--output", data)
    whole = steps("cifar10", "end_to_end-s0", data, tmp_path / "whole", overrides, ["block0"])
    assert whole == [32_475_660]
    name = "independent-B3-equal_mass-overlap0-l2.4.6-s0"
    folder = tmp_path / "uneven"
    uneven = steps("cifar10", name, data, folder, overrides, [f"block{b}" for b in range(3)])
    assert sum(uneven) < 1.2 * whole[0] and uneven == sorted(uneven)
    manifest = folder / "manifest.json"
    call("assemble", *select, "--run", name, "--parts", folder, "--output", manifest)
    call("sample", *select, "--manifest", manifest, "--sampling", "guided", "--output",
         tmp_path / "s.safetensors")  # fmt: skip
    assert load_tensors(tmp_path / "s.safetensors")["images"].shape == (1, 3, 32, 32)


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """Folder of encoded images, and the settings that name where they are from."""
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("the extra latents is not installed")
    root = tmp_path_factory.mktemp("imagenet")
    images, weights = image_folder(root / "images", 1), autoencoder(root / "autoencoder")
    overrides = [*TINY, f"data.path={images}", f"data.autoencoder={weights}"]
    select = ["--preset", PRESETS / "imagenet256.yaml", "--set", *overrides]
    call("data", *select, "--output", root / "data")
    call("latents", *select, "--output", root / "data")
    return root / "data", overrides


@pytest.mark.slow
def test_one_real_step_of_a_block_on_imagenet(latents, tmp_path):
    data, overrides = latents
    name = "independent-B6-equal_mass-overlap0-s0"
    (numbers,) = steps("imagenet256", name, data, tmp_path, overrides, ["block2"])
    assert 75e6 < numbers < 85e6


@pytest.mark.slow
def test_one_real_step_of_the_whole_network_on_imagenet(latents, tmp_path):
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if available < WHOLE_BYTES:
        pytest.skip(f"needs {WHOLE_BYTES / 1e9:.0f} GB of memory, found {available / 1e9:.0f}")
    data, overrides = latents
    command = [sys.executable, "-c", WHOLE, PRESETS / "imagenet256.yaml", data, tmp_path]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    numbers, kibibytes = map(int, done.stdout.split())
    assert numbers > 455e6 and 1024 * kibibytes < WHOLE_BYTES


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokeniser file of as many tokens as the published one has."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<unk>", "</s>", *(f"word{i}" for i in range(31_998))]
    tokenizer = Tokenizer(models.WordLevel(dict(zip(names, range(32_000), strict=True)), "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


#: As published, but for text that is at hand and what a CPU can do in a minute.
TINY_TEXT = [
    *(f"language.{setting}" for setting in TINY),
    "language.training.warmup_iterations=0", "language.training.accumulation=1",
    "language.data={name: pydoc_topics}",
    "language.generation={plain: {prompts: 1, prompt_length: 4, new_tokens: 2, steps: 4}}",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "context", "names"),
    [
        ("lm1b", 256, ["end_to_end-s0", "independent-B4-equal_mass-overlap0.1-frozen-s0",
                       "interleaved-B4-equal_mass-overlap0.1-joint-s0"]),
        ("openwebtext", 3072, ["end_to_end-s0", "independent-B4-equal_mass-overlap0.1-frozen-s0"]),
        ("books", 256, ["independent-B4-equal_mass-overlap0.1-lr3-frozen-s0"]),
    ],
)  # fmt: skip
def test_one_real_step_of_every_kind_of_language_job(words, tmp_path, preset, context, names):
    tokenizer = f"language.tokenizer={{kind: hub, name: {words}}}"
    overrides = [*TINY_TEXT, tokenizer]
    language = load_preset(PRESETS / f"{preset}.yaml", overrides).language
    n = language.network
    assert (n.layers, n.width, n.heads, n.mlp_width) == (12, 768, 12, 2048)
    assert n.context_length == context
    select = ["--preset", preset, "--set", *overrides]
    data = tmp_path / "data"
    call("language", "data", *select, "--output", data)
    for name in names:
        run, folder = language.run(name), tmp_path / name
        whole = preset == "lm1b" or len(run.parts) == 1
        for part in run.parts if whole else run.parts[1:2]:
            output = folder / f"{part}.safetensors"
            call("language", "train", *select, "--run", name, "--part", part, "--data", data,
                 "--output", output, "--state", tmp_path / "state")  # fmt: skip
            record = read_json(output.with_suffix(".json"))
            assert record["diverged_at"] is None
            layers, tokens = sum(b["layers"] for b in record["blocks"]), 2 * 32_000 * n.width
            assert record["parameters"] > layers * 12 * n.width**2 + tokens / 2
        if whole:
            manifest = folder / "manifest.json"
            call("language", "assemble", *select, "--run", name, "--parts", folder,
                 "--output", manifest)  # fmt: skip
            call("language", "generate", *select, "--generation", "plain", "--manifest", manifest,
                 "--data", data, "--output", folder)  # fmt: skip
            assert load_tensors(folder / "samples-plain.safetensors")["tokens"].shape == (1, 1, 6)


def test_cost_counts_what_the_preset_runs(tiny, tmp_path):
    few = "sweep.variants=[{method: end_to_end}, {method: blockwise_independent, blocks: 2}]"
    found = cost(tiny(few), tmp_path)
    assert found.jobs["train"] == 1 + 2 and found.jobs["sample"] == 2
    assert list(found.planned) == [1, 2]
    assert found.planned[1] > found.planned[2], "a block of half the layers needs less"
    assert found.disk["samples"] == 2 * 24 * 64 and found.disk["data"] == 1797 * 64
    longer = cost(tiny(few, "training.iterations=16"), tmp_path)
    assert longer.flops["training"] == 2 * found.flops["training"]
    assert longer.flops["sampling"] == found.flops["sampling"]
    assert found.gpu_hours(0.2) == pytest.approx(2 * found.gpu_hours(0.4))
    assert "estimate" in table([("tiny", found)])


def test_operations_of_dit_s2_are_those_of_its_products():
    from diffusionblocks.memory.point import Images, dit, from_sizes
    from diffusionblocks.paper.cost import step_flops

    point = from_sizes("DiT-S/2", dit("DiT-S/2").model_dump(), Images(32, 3, 10), batch_size=1)
    w, t, layers = 384, 256, 12
    per_layer = 2 * t * (4 + 8) * w * w + 2 * 6 * w * w + 4 * t * t * w
    ends = 2 * t * 2 * 12 * w + 2 * (256 * w + w * w) + 2 * 2 * w * w
    forward = layers * per_layer + ends
    # Backward is twice forward, but its attention computes the scores once more and inputs of
    # the network need no gradient.
    assert step_flops(point) == pytest.approx(3 * forward + layers * 2 * t * t * w, rel=0.002)
    assert torch.get_default_dtype() == torch.float32
