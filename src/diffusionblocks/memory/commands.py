"""The verb ``memory`` of the command line: plan, measure, inference."""

import argparse
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ..config import Preset
from ..errors import UserError
from . import table
from .point import (
    DATA_IMAGES,
    FEW_BLOCKS,
    LATENT,
    Images,
    Point,
    dit,
    divisors,
    from_sizes,
    from_sweep,
    grid,
)

BREAKDOWN = (
    "parameters_bytes,gradients_bytes,optimizer_state_bytes,ema_bytes,activations_bytes,"
    "other_bytes,planned_bytes,formula_bytes,ratio,ideal_ratio,host_bytes"
).split(",")
MEASURED = (
    "planned_bytes,measured_bytes,difference,reserved_bytes,ratio,measured_ratio,ideal_ratio,"
    "seconds_per_step"
).split(",")
#: What a measurement adds to a plan's row.
MEASURED_COLUMNS = (
    "measured_bytes",
    "measured_kind",
    "reserved_bytes",
    "seconds_per_step",
    "device",
)
SAMPLED = "weights,parameters_bytes,rest_bytes,measured_bytes,host_bytes,seconds".split(",")
CHECKPOINTING = {"off": [False], "on": [True], "both": [False, True]}


def integer(text: str, name: str) -> int:
    """A whole number from the command line.

    Raises:
        UserError: it is none.
    """
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--{name}: found {text!r}; expected a whole number") from None


def integers(texts: Iterable[str], name: str) -> list[int]:
    """Whole numbers from the command line, see :func:`integer`."""
    return [integer(text, name) for text in texts]


def points_of(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> list[Point]:
    """Every point that a command line asks for.

    Raises:
        UserError: sizes are missing, impossible or unknown.
    """
    training: dict[str, Any] = {}
    if a.preset:
        preset = read_preset(a)
        model, network = a.preset, preset.network.model_dump()
        images, training = DATA_IMAGES[preset.data.name], preset.training.model_dump()
    else:
        images = Images(*LATENT)
        model, network = a.model or "DiT", dit(a.model).model_dump() if a.model else {}
    for key in ("layers", "width", "heads", "patch"):
        if getattr(a, key) is not None:
            network[key] = integer(getattr(a, key), key)
    if not a.preset and not a.model and {"layers", "width", "heads"} - network.keys():
        raise UserError(
            "no network was named; expected --preset, --model (for instance DiT-L/2), or "
            "--layers, --width and --heads"
        )
    given = {
        key: integer(value, key.replace("_", "-"))
        for key in ("image_size", "channels", "classes")
        if (value := getattr(a, key)) is not None
    }
    images = Images(**vars(images) | given)

    def make(batch_size: int, precision: str, checkpointing: bool, optimizer: str, **rest) -> Point:
        settings = training | {
            "batch_size": batch_size,
            "precision": precision,
            "activation_checkpointing": checkpointing,
            "optimizer": optimizer,
            "optimizer_state": rest.pop("optimizer_state"),
        }
        return from_sizes(model, network, images, **rest, **settings)

    if network["layers"] < 1:
        raise UserError(f"--layers: found {network['layers']}; expected at least 1")
    if a.checkpointing not in (None, *CHECKPOINTING):
        raise UserError(
            f"--checkpointing: found {a.checkpointing!r}; expected one of {[*CHECKPOINTING]}"
        )
    batch = training.get("batch_size", 512)
    known = [training[k] for k in ("precision", "optimizer") if k in training] or ["fp32", "fused"]
    every = 10**9 if getattr(a, "budget", None) else FEW_BLOCKS
    blocks = integers(a.blocks or [], "blocks") or divisors(network["layers"], every)
    return grid(
        make,
        batch_size=integers(a.batch, "batch") if a.batch else [batch],
        precision=a.precision or known[:1],
        checkpointing=CHECKPOINTING[a.checkpointing or ("both" if every > FEW_BLOCKS else "off")],
        optimizer=a.optimizer or known[1:],
        optimizer_state=a.optimizer_state,
        resident=a.resident,
        method=a.method,
        blocks=blocks,
    )


def planned_row(point: Point, formulas: dict[tuple, Any] | None) -> dict[str, Any]:
    """A point's plan as a row; with the formula where a cache of its constants is given."""
    from .formula import formula
    from .plan import plan

    row = point.columns() | plan(point).columns()
    if formulas is None:
        return row
    training = point.run.training
    key = (training.batch_size, training.precision, training.activation_checkpointing)
    if (*key, training.optimizer) not in formulas:
        formulas[*key, training.optimizer] = formula(point)
    found = formulas[*key, training.optimizer]
    return row | {
        "formula_bytes": found.peak(point),
        "layer_parameters_bytes": found.layer_parameters,
        "layer_activations_bytes": found.layer_activations,
        "fixed_bytes": found.fixed,
    }


def report(line: str) -> None:
    """One line of progress, where it does not mix with the table."""
    print(line, file=sys.stderr, flush=True)


def run_plan(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> None:
    """Verb ``memory plan``."""
    budget = table.parse_size(a.budget) if a.budget else None
    points = points_of(a, read_preset)
    if budget is not None:
        from . import budget as within

        found = within.answers(points, budget)
        rows = within.rows(found, budget)
        columns = ["largest_batch", "largest_batch_bytes", "fits"]
    else:
        formulas: dict[tuple, Any] | None = {} if a.formula else None
        rows = table.with_ratios([planned_row(point, formulas) for point in points])
        columns = BREAKDOWN
    print(table.text(rows, columns))
    if budget is not None:
        print(*within.verdicts(found, budget), sep="\n")
    table.write_rows(rows, a.csv, a.json)


def threads_of(a: argparse.Namespace) -> int:
    """The number of threads on the command line.

    Raises:
        UserError: it is not a number from 1.
    """
    threads = integer(a.threads, "threads")
    if threads < 1:
        raise UserError(f"--threads: found {threads}; expected at least 1")
    return threads


def run_measure(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> None:
    """Verb ``memory measure``."""
    points = points_of(a, read_preset)
    steps = integer(a.steps, "steps")
    if steps < 0:
        raise UserError(f"--steps: found {steps}; expected at least 0")
    from .measure import measure

    rows = []
    for point, found in zip(points, measure(points, a.device, threads_of(a), steps), strict=True):
        rows.append(planned_row(point, None) | found)
        report(f"{len(rows)}/{len(points)} measured, {table.size_text(found['measured_bytes'])}")
    rows = table.with_ratios(rows)
    print(table.text(rows, MEASURED))
    table.write_rows(rows, a.csv, a.json)


def run_sweep(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> None:
    """Verb ``memory sweep``: one of the preset's memory tables."""
    preset = read_preset(a)
    sweep = preset.memory.sweeps.get(a.sweep)
    if sweep is None:
        raise UserError(
            f"no memory sweep {a.sweep!r} in the preset; expected one of {[*preset.memory.sweeps]}"
        )
    from .measure import fits_cuda, measure

    points = from_sweep(preset, a.preset, sweep)
    formulas: dict[tuple, Any] = {}
    rows = [planned_row(point, formulas) for point in points]
    report(f"{a.sweep}: {len(rows)} points planned")
    chosen = {
        "always": lambda row: True,
        "cuda": lambda row: fits_cuda(row["planned_bytes"]),
        "never": lambda row: False,
    }[sweep.measure]
    measured = [i for i, row in enumerate(rows) if chosen(row)]
    compute, steps = preset.compute, preset.memory.timed_steps
    found = measure([points[i] for i in measured], compute.device, compute.threads, steps)
    for i, values in zip(measured, found, strict=True):
        rows[i] |= values
    report(f"{a.sweep}: {len(measured)} points measured")
    rows = [dict.fromkeys(MEASURED_COLUMNS) | row for row in rows]
    table.write_rows(table.with_ratios(rows), a.csv, None)


def run_text(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> None:
    """Verb ``memory text``: plan the language model that a preset's memory section names."""
    from .plan import plan
    from .text_point import text_points

    text = read_preset(a).memory.text
    if text is None:
        raise UserError("the preset names no language model to plan; expected memory.text: set it")
    points = list(text_points(text))
    rows = [point.columns() | plan(point).columns() for point in points]
    settings = ("batch_size", "precision", "checkpointing")
    whole = {tuple(r[k] for k in settings): r["planned_bytes"] for r in rows if r["blocks"] == 1}
    for row in rows:
        row["ideal_ratio"] = 1 / row["blocks"]
        row["ratio"] = row["planned_bytes"] / whole[tuple(row[k] for k in settings)]
    print(table.text(rows, ["planned_bytes", "ratio", "ideal_ratio"]))
    table.write_rows(rows, a.csv, None)


def run_crossing(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> None:
    """Verb ``memory crossing``."""
    from .crossing import crossing_rows

    rows = crossing_rows([point for point in points_of(a, read_preset) if point.run.blocks > 1])
    if not rows:
        raise UserError("--blocks names no number above 1; expected at least one, to compare")
    print(table.text(rows, ["crossing_batch", "crossing_bytes"]))
    table.write_rows(rows, a.csv, a.json)


def run_inference(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> None:
    """Verb ``memory inference``."""
    from ..config import SamplingConfig, validated

    points = points_of(a, read_preset)
    settings = {"steps": a.steps, "samples": a.samples, "batch_size": a.samples}
    sampling = validated(SamplingConfig, settings, "memory inference")
    from .inference import inference_rows

    rows = []
    for row in inference_rows(points, sampling, a.device, threads_of(a)):
        rows.append(row)
        report(f"B = {row['blocks']}, {row['weights']}: {row['seconds']:.2f} s")
    print(table.text(rows, SAMPLED))
    table.write_rows(rows, a.csv, a.json)


def _add_points(p: argparse.ArgumentParser) -> None:
    p.add_argument("--preset", help="take network and training settings of a preset")
    p.add_argument("--set", nargs="*", metavar="KEY=VALUE", help="replace settings of the preset")
    p.add_argument("--model", help="or a DiT by name: DiT-S/2, DiT-B/4, DiT-L/2, …")
    for name in ("layers", "width", "heads", "patch", "image-size", "channels", "classes"):
        p.add_argument(f"--{name}", help="replaces the one of the preset or model")
    p.add_argument("--blocks", nargs="+", metavar="B", help="numbers of blocks")
    p.add_argument("--batch", nargs="+", metavar="N", help="batch sizes")
    p.add_argument("--method", nargs="+", default=["blockwise_independent"], help="how to train")
    p.add_argument("--precision", nargs="+", help="fp32, bf16 or both")
    p.add_argument("--checkpointing", help="off, on or both")
    p.add_argument("--optimizer", nargs="+", help="fused, foreach or both")
    p.add_argument("--optimizer-state", nargs="+", default=["resident"], help="or offloaded")
    p.add_argument("--resident", nargs="+", default=["own"], help="own block or all on the device")
    p.add_argument("--csv", type=Path, help="write the table here")
    p.add_argument("--json", type=Path, help="and here")


def _add_device(p: argparse.ArgumentParser) -> None:
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    p.add_argument("--threads", default="1", help="of each process")


def add_memory(verbs: Any, read_preset: Callable[[argparse.Namespace], Preset]) -> None:
    """Add the verb ``memory`` to the command line.

    Args:
        verbs: what ``add_subparsers`` returned.
        read_preset: from the command line's namespace to its preset.
    """
    text = "plan or measure the memory of training and sampling"
    kinds = verbs.add_parser("memory", help=text, description=text).add_subparsers(
        dest="kind", required=True
    )

    def kind(name: str, handler: Callable[..., None], text: str) -> argparse.ArgumentParser:
        p = kinds.add_parser(name, help=text, description=text)
        p.set_defaults(handler=partial(handler, read_preset=read_preset))
        return p

    p = kind("plan", run_plan, "plan a training step's peak to the byte, by what it is for")
    _add_points(p)
    p.add_argument("--budget", metavar="SIZE", help="what fits, for instance 24GiB")
    p.add_argument("--formula", action="store_true", help="add the formula's prediction")
    p = kind("measure", run_measure, "measure training steps, each in a fresh process")
    _add_points(p)
    _add_device(p)
    p.add_argument("--steps", default="5", help="further steps to time")
    text = "up to which batch blocks need less than checkpointing end to end"
    _add_points(kind("crossing", run_crossing, text))
    text = "measure sampling with all blocks on the device, and with one streamed from disk"
    p = kind("inference", run_inference, text)
    _add_points(p)
    _add_device(p)
    p.add_argument("--steps", default="50", help="noise levels")
    p.add_argument("--samples", default="100", help="drawn at once")
    p = kind("sweep", run_sweep, "write one of the memory tables that a preset describes")
    p.add_argument("--preset", required=True, help="name or YAML file of a preset")
    p.add_argument("--set", nargs="*", metavar="KEY=VALUE", help="replace settings of the preset")
    p.add_argument("--sweep", required=True, help="name of one of its memory.sweeps")
    p.add_argument("--csv", type=Path, required=True, help="write the table here")
    p = kind("text", run_text, "plan the language model that a preset's memory section names")
    p.add_argument("--preset", required=True, help="name or YAML file of a preset")
    p.add_argument("--set", nargs="*", metavar="KEY=VALUE", help="replace settings of the preset")
    p.add_argument("--csv", type=Path, help="write the table here")
