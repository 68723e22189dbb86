"""Which bits are stable: the same job again, with more threads, compiled, in other batches.

Writes a table, results/determinism.csv, of what was compared here and what was not.
"""

import csv
import os
import shutil
from pathlib import Path

import pytest
import torch
from harness import ROOT, Sweep, write_preset

TABLE = Path(os.environ.get("DIFFUSIONBLOCKS_DETERMINISM", ROOT / "results/determinism.csv"))
COLUMNS = ["changed", "result", "bit_stable", "measured"]
#: What changes, what is compared, whether the suite promises the same bits, and how to change it.
CHANGES = {
    "nothing: the same job again": ("weights", True, {}),
    "interval of checkpoints": ("weights", True, {"training": {"checkpoint_every": 7}}),
    "threads a job, 1 to 2": ("weights", False, {"compute": {"threads": 2}}),
    "kind of AdamW, fused to foreach": ("weights", False, {"training": {"optimizer": "foreach"}}),
    "microbatches, 1 to 4": ("weights", False, {"training": {"accumulation": 4}}),
    "torch.compile": ("weights", False, {"training": {"compile": True, "iterations": 4}}),
    "batches of sampling, 40 to 200": (
        "samples", False, {"sampling": {"plain": {"batch_size": 200}}}
    ),
}  # fmt: skip
ROWS: list[dict] = []


@pytest.fixture(scope="module", autouse=True)
def table():
    """Rows that are not measured on this machine come last."""
    yield
    rows = [*ROWS, {"changed": "cores of the sweep, 1 to 2", "result": "weights, samples, tables",
                    "bit_stable": "yes", "measured": "by fault_workflow.py"}]  # fmt: skip
    if not torch.cuda.is_available():
        rows.append({"changed": "CPU to GPU", "result": "weights", "bit_stable": "not promised",
                     "measured": "not measured: no GPU here"})  # fmt: skip
        rows.append({"changed": "nothing, on a GPU", "result": "weights", "bit_stable": "unknown",
                     "measured": "not measured: no GPU here"})  # fmt: skip
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def trained(folder: Path, whole, **changes) -> Sweep:
    """The first part of the sweep, trained with other settings."""
    folder.mkdir()
    # `sampling` is nested one level deeper than the other sections.
    if "sampling" in changes:
        plain = {"samples": 200, "steps": 20, "batch_size": 40} | changes["sampling"]["plain"]
        changes = {"sampling": {"plain": plain}}
    sweep = Sweep(write_preset(folder / "changed.yaml", **changes), folder / "results", whole.root)
    done = sweep.run("train block0")
    assert done.code == 0, done.text
    return sweep


def tensors(sweep: Sweep, kind: str) -> dict[str, torch.Tensor]:
    """What was computed, by name."""
    from diffusionblocks.tensors import load_tensors

    name = {"weights": "train block0", "samples": "sample"}[kind]
    return load_tensors(sweep.stage(name).outputs[0])


@pytest.mark.parametrize("changed", [*CHANGES])
def test_bits_after(whole, tmp_path, changed):
    kind, promised, settings = CHANGES[changed]
    if "compile" in settings.get("training", {}):
        if shutil.which("g++") is None:
            pytest.skip("torch.compile needs a C++ compiler")
        few = {"training": {"iterations": settings["training"]["iterations"]}}
        first = trained(tmp_path / "plain", whole, **few)
    else:
        first = whole
    if kind == "samples":
        # The same weights: only the batches differ.
        second = first.copy(tmp_path / "copy")
        second.remove("sample")
        plain = {"samples": 200, "steps": 20} | settings["sampling"]["plain"]
        second.preset = write_preset(tmp_path / "changed.yaml", sampling={"plain": plain})
        assert second.run("sample").code == 0
    else:
        second = trained(tmp_path / "changed", whole, **settings)
    ours, theirs = tensors(first, kind), tensors(second, kind)
    assert ours.keys() == theirs.keys()
    same = all(torch.equal(ours[name], theirs[name]) for name in ours)
    furthest = max(float((ours[n].double() - theirs[n].double()).abs().max()) for n in ours)
    promise = "yes" if same else f"no: up to {furthest:.1e} apart"
    ROWS.append({"changed": changed, "result": kind, "bit_stable": promise, "measured": "here"})
    assert same or not promised
    if kind == "weights":
        # Whatever changes the last bit must not change the answer.
        assert furthest < 0.05
