"""What language presets cost: jobs, memory and arithmetic without a GPU or their text."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from languages import LANGUAGE, write_preset

from diffusionblocks.cli import main
from diffusionblocks.config import GPTConfig, load_preset
from diffusionblocks.errors import UserError
from diffusionblocks.memory.text_point import text_point
from diffusionblocks.paper.cost import step_flops, table
from diffusionblocks.paper.text_cost import generation_flops, text_cost, vocabulary_of
from diffusionblocks.status import language_jobs

ROOT = Path(__file__).resolve().parent.parent
BPE = {"kind": "bpe", "vocabulary": 300}
#: Jobs of the DAG that take no time and are counted by nobody, and the name of the whole.
NO_JOBS = {"text_assemble", "language"}


@pytest.fixture
def language(tmp_path):
    def make(**sections):
        path = write_preset(tmp_path / "text.yaml", **({"tokenizer": BPE} | sections))
        return load_preset(path).language

    return make


def test_operations_of_a_step_are_those_of_its_products():
    width, layers, length, vocabulary, hidden = 96, 6, 64, 500, 256
    network = GPTConfig(layers=layers, width=width, heads=4, context_length=length)
    point = text_point(network, vocabulary, 1, None, batch_size=1)
    weights = layers * (4 * width**2 + 3 * width * hidden) + width * vocabulary
    # Scores and mixing, forward; backward twice that, with the scores computed once more.
    attention = layers * 4 * length**2 * width * 3.5
    assert step_flops(point) == pytest.approx(6 * length * weights + attention, rel=0.01)


def test_a_denoising_block_costs_twice_its_share_of_the_plain_network():
    network = GPTConfig(layers=12, width=256, heads=4, context_length=64)
    plain = step_flops(text_point(network, 64, 1, None, batch_size=1))
    block = step_flops(text_point(network, 64, 3, "frozen", batch_size=1))
    assert 3 * block == pytest.approx(2 * plain, rel=0.15)


def test_jobs_are_those_of_the_sweep(language, tmp_path):
    found = language()
    listed = [job.name for job in language_jobs(found, tmp_path)]
    jobs = text_cost(found).jobs
    parts = sum(len(run.parts) for run in found.runs()) + 1  # and the judge's
    assert jobs["train"] == parts == sum(" block" in n or " all" in n for n in listed)
    assert jobs["generate"] == len(found.runs())
    assert jobs["evaluate"] == sum(n.endswith(" scores") or n == "floor" for n in listed)
    assert jobs["data"] + jobs["report"] == len({"data", "tables", "notebook"} & set(listed))


@pytest.mark.slow
def test_jobs_are_those_that_snakemake_plans(tmp_path):
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--nolock", "-n", "language"]
    command += ["--config", "preset=books_small", f"results={tmp_path}"]
    dry = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert dry.returncode == 0, dry.stderr[-2000:]
    planned = dry.stdout.split("Job stats:")[1].split("total")[0]
    rules = {m[1]: int(m[2]) for m in re.finditer(r"^(\w+) +(\d+)$", planned, re.MULTILINE)}
    preset = load_preset(ROOT / "workflow/config/presets/books_small.yaml")
    jobs = text_cost(preset.language).jobs
    assert jobs["train"] == rules["text_train"] and jobs["generate"] == rules["text_generate"]
    assert jobs["evaluate"] == rules["text_score"] + rules["text_floor"]
    assert sum(jobs.values()) == sum(n for rule, n in rules.items() if rule not in NO_JOBS)


def test_arithmetic_is_proportional_to_updates(language):
    def updates(iterations, scale, judge):
        sections = {
            "training": LANGUAGE["training"] | {"iterations": iterations},
            "evaluation": LANGUAGE["evaluation"] | {"judge": judge},
            "sweep": {
                "seeds": [0],
                "variants": [{"method": "end_to_end", "iterations_scale": scale}],
            },
        }
        return text_cost(language(**sections)).flops["training"]

    hub = {"name": "openai-community/gpt2-xl@" + 40 * "0"}
    one = updates(1, 1, hub)
    assert updates(6, 1, hub) == 6 * one
    assert updates(6, 2, hub) == 12 * one and updates(6, [1, 2], hub) == 18 * one
    assert updates(6, 1, {"iterations": 4}) == 10 * one, "an own judge is a run like others"


def test_only_what_is_run_counts(language):
    found, longer = (
        text_cost(language(training=LANGUAGE["training"] | changes))
        for changes in ({}, {"iterations": 12})
    )
    assert longer.flops["generation"] == found.flops["generation"]
    assert found.planned[2] > found.planned[3], "a block of half the layers needs less"
    assert "text not counted" in table([("tiny", found)])


def test_recomputing_layers_costs_another_forward_pass(language):
    stored, recomputed = (
        text_cost(language(training=LANGUAGE["training"] | {"activation_checkpointing": kept}))
        for kept in (False, True)
    )
    # A third more, but for the head, which is not computed again.
    assert 1.05 < recomputed.flops["training"] / stored.flops["training"] < 4 / 3
    assert recomputed.planned[2] < stored.planned[2]


def test_generation_counts_the_layers_that_a_token_passes(language):
    found = language(generation={"plain": LANGUAGE["generation"]["plain"] | {"prompt_length": 1}})
    (settings,) = found.generation.values()
    rows = settings.prompts * settings.continuations
    for name in ("end_to_end-s0", "independent-B3-equal_mass-overlap0-frozen-s0"):
        run = found.run(name)
        few, many = (generation_flops(run, settings, v) for v in (0, 300))
        deep = with_layers(run, 12)
        # Twice the layers, twice the work but for the head's.
        assert generation_flops(deep, settings, 0) == pytest.approx(2 * few)
        heads = 1 if run.method == "end_to_end" else 2 * settings.steps - 1
        assert many - few == 2 * rows * settings.new_tokens * heads * run.network.width * 300


def with_layers(run, layers):
    return run.model_copy(update={"network": run.network.model_copy(update={"layers": layers})})


def test_a_vocabulary_that_nobody_knows_is_one_line(language, tmp_path, capsys):
    assert vocabulary_of(language()) == 300
    with pytest.raises(UserError, match="found tokenizer characters, whose number of tokens"):
        text_cost(language(tokenizer={"kind": "characters"}))
    commit = 40 * "0"
    known, other = (
        language(tokenizer={"kind": "hub", "name": f"{name}@{commit}"})
        for name in ("hf-internal-testing/llama-tokenizer", "owner/other")
    )
    assert vocabulary_of(known) == 32_000
    with pytest.raises(UserError, match="found tokenizer owner/other, whose"):
        vocabulary_of(other)
    assert main(["cost"]) == 2
    assert "found no preset" in capsys.readouterr().err
    assert main(["cost", "--language", "cifar10"]) == 2
    assert "no language section" in capsys.readouterr().err


def test_the_verb_counts_either_half(capsys):
    assert main(["cost", "--language", "books"]) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert row.startswith("| `books`, language | 59 (1 data, 31 train, 12 generate")
