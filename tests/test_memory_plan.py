"""The planner: equal to the allocator to the byte, affine in depth, and honest about what fits."""

import csv
import json
from pathlib import Path

import pytest
import torch

from diffusionblocks.cli import main
from diffusionblocks.config import GPTConfig
from diffusionblocks.memory import budget
from diffusionblocks.memory.formula import formula
from diffusionblocks.memory.live import LABELS
from diffusionblocks.memory.measure import measure, measure_here
from diffusionblocks.memory.plan import plan
from diffusionblocks.memory.point import Images, dit, from_preset, from_sizes, with_training
from diffusionblocks.memory.rehearsal import Rehearsal
from diffusionblocks.memory.table import parse_size, size_text, with_ratios
from diffusionblocks.memory.text_point import text_point

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"layers": 6, "width": 16, "heads": 2, "patch": 4}
DIGITS = Images(8, 1, 10)
CPU = torch.device("cpu")
METHODS = [("end_to_end", 1), ("blockwise_independent", 3), ("blockwise_interleaved", 3)]


def small(method="end_to_end", blocks=1, network=None, **training):
    training = {"batch_size": 8} | training
    return from_sizes("small", SMALL | (network or {}), DIGITS, method, blocks, **training)


# ------------------------------------------------------------------ plan = allocator


@pytest.mark.parametrize("method,blocks", METHODS)
@pytest.mark.parametrize("batch_size", [2, 64])
def test_plan_equals_the_allocator_to_the_byte(method, blocks, batch_size):
    """At small batch the optimiser's moment is the highest, at large batch the activations'."""
    point = small(method, blocks, batch_size=batch_size)
    assert plan(point).peak == measure_here(point, CPU, 0)["measured_bytes"]


@pytest.mark.parametrize("method,blocks", METHODS)
def test_plan_with_checkpointing_is_within_three_per_cent(method, blocks):
    point = small(method, blocks, batch_size=32, activation_checkpointing=True)
    measured = measure_here(point, CPU, 0)["measured_bytes"]
    assert plan(point).peak == pytest.approx(measured, rel=0.03)
    assert measured < measure_here(small(method, blocks, batch_size=32), CPU, 0)["measured_bytes"]


@pytest.mark.parametrize(
    "change",
    [
        {"accumulation": 4},
        {"optimizer_state": "offloaded"},
        {"resident": "all"},
        {"layers_per_block": (1, 4, 1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_plan_equals_the_allocator_in_every_setting(change):
    method = "blockwise_interleaved" if "optimizer_state" in change else "blockwise_independent"
    point = small(method, 3, **change)
    assert plan(point).peak == measure_here(point, CPU, 0)["measured_bytes"]


def test_foreach_holds_more_than_fused_where_the_update_is_the_highest_moment():
    """Its scalars on the host, a few bytes, are not told apart."""
    point = small(network={"layers": 1, "patch": 8}, batch_size=1, optimizer="foreach")
    planned = plan(point)
    measured = measure_here(point, CPU, 0)["measured_bytes"]
    assert planned.peak == pytest.approx(measured, rel=1e-3)
    fused = plan(with_training(point, optimizer="fused"))
    assert planned.peak - fused.peak > 0.5 * fused.labels["parameters"]


def test_plan_in_bf16_is_near_the_allocator():
    point = small(precision="bf16", batch_size=32)
    assert plan(point).peak == pytest.approx(
        measure_here(point, CPU, 0)["measured_bytes"], rel=0.03
    )
    assert plan(point).labels["activations"] < plan(small(batch_size=32)).labels["activations"]


def test_a_fresh_process_measures_what_this_one_plans():
    points = [small(batch_size=16), small("blockwise_independent", 2, batch_size=16)]
    for point, found in zip(points, measure(points, "cpu", 1, 2), strict=True):
        assert found["measured_bytes"] == plan(point).peak
        assert found["seconds_per_step"] > 0


# ------------------------------------------------------------------ what the bytes are for


def test_labels_are_the_sizes_of_what_they_name():
    point = small("blockwise_independent", 3, batch_size=64)
    labels = plan(point).labels
    network = Rehearsal(point, CPU).state.network
    P = sum(4 * p.numel() for p in network.parameters())
    steps = 4 * len(list(network.parameters()))
    assert tuple(labels) == LABELS
    assert labels["parameters"] == labels["ema"] == P
    assert labels["optimizer_state"] == 2 * P + steps
    assert labels["activations"] > P, "at batch 64 activations are the most"


def test_an_independent_job_holds_its_block_and_an_interleaved_one_all_layers():
    alone = plan(small("blockwise_independent", 3)).labels
    interleaved = plan(small("blockwise_interleaved", 3)).labels
    whole = plan(small()).labels
    assert alone["parameters"] < interleaved["parameters"] == whole["parameters"]
    assert alone["optimizer_state"] < interleaved["optimizer_state"] == whole["optimizer_state"]
    assert interleaved["activations"] == alone["activations"] < whole["activations"]


def test_blocks_that_stay_resident_add_their_weights_averages_and_moments():
    alone = plan(small("blockwise_independent", 3)).labels
    together = plan(small("blockwise_independent", 3, resident="all")).labels
    for label in ("parameters", "ema", "optimizer_state"):
        assert together[label] == 3 * alone[label]
    assert together["activations"] == alone["activations"]


def test_offloading_moves_idle_moments_to_the_host():
    resident = plan(small("blockwise_interleaved", 3, batch_size=64))
    offloaded = plan(small("blockwise_interleaved", 3, batch_size=64, optimizer_state="offloaded"))
    layer = formula(small(batch_size=64)).layer_parameters
    # At the highest moment the block at work has its moments on the device, the others have not.
    assert resident.peak - offloaded.peak == 2 * 4 * layer
    assert offloaded.host_bytes == 2 * 6 * layer
    assert resident.host_bytes == 0


def test_the_deepest_of_uneven_blocks_decides():
    uneven = small("blockwise_independent", 3, layers_per_block=(1, 4, 1))
    assert plan(uneven).peak == plan(small(network={"layers": 4})).peak


# ------------------------------------------------------------------ the formula


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_is_affine_in_depth(checkpointing):
    settings = {"batch_size": 64, "activation_checkpointing": checkpointing}
    depths = (2, 3, 7)
    peaks = [plan(small(network={"layers": d}, **settings)).peak for d in depths]
    slope = peaks[1] - peaks[0]
    assert peaks == [peaks[0] + slope * (d - 2) for d in depths]


@pytest.mark.parametrize(
    "method,blocks,rest",
    [
        ("end_to_end", 1, {}),
        ("blockwise_independent", 3, {}),
        ("blockwise_independent", 3, {"resident": "all"}),
        ("blockwise_interleaved", 3, {}),
        ("blockwise_interleaved", 3, {"optimizer_state": "offloaded"}),
    ],
)
def test_the_formula_predicts_the_peak_where_activations_dominate(method, blocks, rest):
    point = small(method, blocks, batch_size=64, **rest)
    constants = formula(point)
    assert constants.peak(point) == pytest.approx(plan(point).peak, rel=0.002)


def test_the_paper_scale_table_of_the_design():
    """DiT-L/2 at batch 512 without checkpointing: the saving is 1/B to within two points."""
    peaks = {}
    for B in (6, 4, 3):  # 24 layers follow from the affine law, which the test above pins
        network = dit("DiT-L/2").model_dump()
        point = from_sizes("DiT-L/2", network, Images(32, 4, 1000), blocks=B, batch_size=512)
        peaks[24 // B] = plan(point).peak
    slope = (peaks[8] - peaks[6]) / 2
    assert slope == (peaks[6] - peaks[4]) / 2
    whole = peaks[8] + 16 * slope
    for depth, peak in peaks.items():
        assert abs(peak / whole - depth / 24) < 0.02


# ------------------------------------------------------------------ budgets


@pytest.mark.parametrize("guess", [1, 2, 9, 10, 11, 40])
def test_the_largest_count_within_a_budget_is_found_from_any_guess(guess):
    looked = []

    def peak(count):
        looked.append(count)
        return max(50, 10 * count)

    assert budget.largest(peak, 109, guess) == (10, 100)
    assert len(looked) == len(set(looked)) < 15
    assert budget.largest(peak, 49, guess) == (0, 50)


def test_the_largest_batch_fits_and_the_next_does_not():
    point = small("blockwise_independent", 2)
    limit = 2 * 2**20
    (found,) = budget.answers([point], limit)
    assert found.peak == plan(with_training(point, batch_size=found.largest_batch)).peak <= limit
    assert plan(with_training(point, batch_size=found.largest_batch + 1)).peak > limit


def test_a_budget_names_the_smallest_B_or_what_is_missing(capsys):
    arguments = ["memory", "plan", "--layers", "6", "--width", "16", "--heads", "2", "--patch", "4"]
    arguments += ["--image-size", "8", "--channels", "1", "--classes", "10", "--blocks", "2", "3"]
    arguments += ["--checkpointing", "off"]
    assert main([*arguments, "--batch", "64", "--budget", "1.2MiB"]) == 0
    shown = capsys.readouterr().out
    assert "without checkpointing: B = 3 is the smallest that fits 1.2 MiB" in shown
    assert main([*arguments, "--batch", "4096", "--budget", "1.2MiB"]) == 0
    assert "does not fit 1.2 MiB; the least, B = 3, needs" in capsys.readouterr().out
    assert main([*arguments, "--budget", "100KiB"]) == 2
    error = capsys.readouterr().err
    assert "below the fixed cost" in error and "are missing" in error and error.count("\n") == 1


# ------------------------------------------------------------------ tables and the command line


def test_plan_command_writes_one_row_a_point(tiny_file, tmp_path, capsys):
    files = {kind: tmp_path / f"plan.{kind}" for kind in ("csv", "json")}
    methods = ["blockwise_independent", "blockwise_interleaved"]
    code = main(
        ["memory", "plan", "--preset", str(tiny_file), "--blocks", "1", "3", "--method", *methods,
         "--formula", "--csv", str(files["csv"]), "--json", str(files["json"])]
    )  # fmt: skip
    assert code == 0
    with files["csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["method"], r["blocks"]) for r in rows] == [
        ("end_to_end", "1"),
        ("blockwise_independent", "3"),
        ("blockwise_interleaved", "3"),
    ], "B = 1 is the same for every method and stands once"
    for row in rows:
        assert sum(int(row[f"{label}_bytes"]) for label in LABELS) == int(row["planned_bytes"])
        assert float(row["ratio"]) == int(row["planned_bytes"]) / int(rows[0]["planned_bytes"])
    assert len(json.loads(files["json"].read_text())) == 3
    assert "sizes in MiB" in capsys.readouterr().out


def test_measure_command_puts_both_side_by_side(tiny_file, tmp_path, capsys):
    path = tmp_path / "measured.csv"
    code = main(
        ["memory", "measure", "--preset", str(tiny_file), "--blocks", "2", "--csv", str(path)]
    )
    assert code == 0
    with path.open() as file:
        (row,) = csv.DictReader(file)
    assert row["planned_bytes"] == row["measured_bytes"] and float(row["difference"]) == 0
    assert row["ratio"] == "", "without B = 1 there is nothing to compare with"
    assert "+0.00 %" in capsys.readouterr().out


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_crossing_is_the_largest_batch_at_which_a_block_needs_no_more(tiny, tmp_path, capsys):
    preset, path, text = tiny(), tmp_path / "crossing.csv", str(tmp_path / "tiny.yaml")

    def excess(blocks, n):
        ways = ({"blocks": blocks}, {"blocks": 1, "activation_checkpointing": True})
        block, whole = (plan(from_preset(preset, "t", batch_size=n, **way)).peak for way in ways)
        return block - whole

    code = main(["memory", "crossing", "--preset", text, "--blocks", "2", "3", "--csv", str(path)])
    assert code == 0
    for row in table(path):
        blocks, batch = int(row["blocks"]), int(row["crossing_batch"])
        assert excess(blocks, batch) <= 0 < excess(blocks, batch + 1)
    assert "crossing batch" in capsys.readouterr().out
    assert main(["memory", "crossing", "--preset", text, "--blocks", "1"]) == 2
    assert "above 1" in capsys.readouterr().err


def test_streaming_a_block_holds_one_block_and_draws_the_same(tiny_file, tmp_path):
    path = tmp_path / "inference.csv"
    select = ["--preset", str(tiny_file), "--blocks", "1", "3", "--device", "cpu"]
    sampling = ["--steps", "3", "--samples", "4", "--csv", str(path)]
    assert main(["memory", "inference", *select, *sampling]) == 0
    rows = table(path)
    assert [(r["blocks"], r["weights"]) for r in rows] == [
        ("1", "all resident"),
        ("3", "all resident"),
        ("3", "one streamed"),
        ("3", "one streamed, next read ahead"),
    ]
    resident, streamed, ahead = rows[1:]
    assert 3 * int(streamed["parameters_bytes"]) == int(resident["parameters_bytes"])
    assert int(streamed["measured_bytes"]) < int(resident["measured_bytes"])
    assert int(ahead["host_bytes"]) > 0 == int(streamed["host_bytes"])
    assert all(float(r["seconds"]) > 0 for r in rows)


def test_sweep_command_plans_and_measures_a_table_of_the_preset(tmp_path, capsys):
    path = tmp_path / "methods.csv"
    smoke = str(ROOT / "workflow/config/presets/smoke.yaml")
    select = ["memory", "sweep", "--preset", smoke, "--csv", str(path)]
    assert main([*select, "--sweep", "methods"]) == 0
    rows = table(path)
    assert {r["method"] for r in rows} == {
        "end_to_end",
        "blockwise_independent",
        "blockwise_interleaved",
    }
    assert all(r["measured_bytes"] == r["planned_bytes"] for r in rows)
    assert all(float(r["formula_bytes"]) > 0 for r in rows)
    offloaded = [r for r in rows if r["optimizer_state"] == "offloaded"]
    assert offloaded and all(int(r["host_bytes"]) > 0 for r in offloaded if int(r["blocks"]) > 1)
    assert main([*select, "--sweep", "no_such"]) == 2
    assert "no memory sweep 'no_such'" in capsys.readouterr().err


def test_a_preset_gives_its_network_and_training(tiny):
    preset = tiny("training.batch_size=24", "training.precision=bf16")
    point = from_preset(preset, "tiny", blocks=3, activation_checkpointing=True)
    columns = point.columns()
    assert (columns["layers"], columns["batch_size"], columns["precision"]) == (6, 24, "bf16")
    assert columns["checkpointing"] and columns["method"] == "blockwise_independent"


def test_ratios_compare_equal_settings_only():
    rows = [small(batch_size=b).columns() | {"planned_bytes": 100 * b} for b in (1, 2)] + [
        small("blockwise_independent", 2, batch_size=2).columns() | {"planned_bytes": 120}
    ]
    assert [row["ratio"] for row in with_ratios(rows)] == [1, 1, 0.6]


@pytest.mark.parametrize("text,size", [("24GiB", 24 * 2**30), ("1.5 GB", 1.5e9), ("7", 7)])
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


def test_sizes_are_written():
    assert [size_text(n) for n in (12, 2048, 3 * 2**29)] == ["12 B", "2 KiB", "1.5 GiB"]


@pytest.mark.parametrize(
    "arguments,message",
    [
        ([], "no network was named"),
        (["--model", "DiT-Q/2"], "unknown model 'DiT-Q/2'"),
        (["--model", "DiT-S/2", "--precision", "fp16"], "'fp32' or 'bf16'"),
        (["--model", "DiT-S/2", "--blocks", "5"], "do not divide into 5 equal blocks"),
        (["--model", "DiT-S/2", "--blocks", "two"], "found 'two'; expected a whole number"),
        (["--model", "DiT-S/2", "--batch", "0"], "greater than 0"),
        (["--model", "DiT-S/2", "--method", "magic"], "found 'magic'"),
        (["--model", "DiT-S/2", "--checkpointing", "maybe"], "expected one of"),
        (["--model", "DiT-S/2", "--resident", "some"], "found resident 'some'"),
        (["--model", "DiT-S/2", "--image-size", "33"], "does not divide the 33 pixels"),
        (["--model", "DiT-S/2", "--classes", "0"], "found classes 0"),
        (["--model", "DiT-S/2", "--budget", "much"], "found size 'much'"),
        (["--layers", "-3", "--width", "8", "--heads", "2"], "expected at least 1"),
        (["--layers", "2", "--width", "9", "--heads", "2"], "must be a multiple of heads"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(["memory", "plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_measuring_on_cuda_without_cuda_is_one_line(capsys):
    arguments = ["--model", "DiT-S/2", "--blocks", "12", "--batch", "1", "--device", "cuda"]
    assert main(["memory", "measure", *arguments]) == 2
    error = capsys.readouterr().err
    assert "finds no CUDA device" in error and error.count("\n") == 1


# --- a language model ---------------------------------------------------------------------------

TEXT = {"layers": 6, "width": 32, "heads": 2, "context_length": 24}


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("blocks", "embedding"), [(2, "frozen"), (6, "frozen")])
def test_a_language_block_is_planned_as_the_allocator_counts(blocks, embedding, kept):
    network = GPTConfig(**TEXT)
    training = {"batch_size": 4, "activation_checkpointing": kept}
    point = text_point(network, 50, blocks, embedding, **training)
    measured = measure_here(point, torch.device("cpu"), 0)["measured_bytes"]
    assert plan(point).peak == pytest.approx(measured, rel=0.03 if kept else 0)


def test_the_plain_language_model_is_planned_as_the_allocator_counts():
    point = text_point(GPTConfig(**TEXT), 50, 1, None, batch_size=4)
    measure_here(point, torch.device("cpu"), 0)  # what a process makes once only
    assert measure_here(point, torch.device("cpu"), 0)["measured_bytes"] == plan(point).peak


def test_language_blocks_see_a_sequence_twice():
    network = GPTConfig(**TEXT)
    whole = plan(text_point(network, 50, 1, None, batch_size=4)).labels["activations"]
    blocks = {B: plan(text_point(network, 50, B, "frozen", batch_size=4)).labels for B in (2, 3)}
    assert blocks[2]["activations"] > 0.9 * whole  # half of the layers, about twice as much each
    assert blocks[3]["activations"] < blocks[2]["activations"]


def test_the_language_command_writes_ratios_to_the_plain_network(tmp_path, capsys):
    path = tmp_path / "text.csv"
    preset = ["--preset", str(ROOT / "workflow/config/presets/smoke.yaml")]
    assert main(["memory", "text", *preset, "--csv", str(path)]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["blocks"] for row in rows[:4]] == ["1", "2", "3", "6"]
    assert rows[0]["ratio"] == "1.0" and float(rows[3]["ratio"]) < float(rows[1]["ratio"])
    assert main(["memory", "text", *preset, "--set", "memory.text=null"]) == 2
    assert "expected memory.text" in capsys.readouterr().err
