"""Every run's JSON gathered into tidy CSV: one row is one run and one number."""

import csv
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..config import Preset, RunConfig
from ..errors import UserError
from ..files import atomic_path, sha256
from ..records import DATASET, FLOOR, SAMPLED, SCORES, TRAINED, number, read_record
from ..tensors import load_samples

#: Columns of a training curve.
CURVE = ["block", "iteration", "loss", "grad_norm"]
#: Samples of every class that are shown in a picture.
PER_CLASS = 4
SHOWN_CLASSES = 10


def write_csv(
    path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write rows of equal keys whole; the first row names the columns.

    Args:
        columns: their names, of a table that may have no rows.
    """
    rows = list(rows)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _score_rows(run: RunConfig, preset: Preset, scores: dict) -> list[dict]:
    cost = {key: scores[key] for key in ("layer_evaluations", "iterations")}
    rows = []
    for score in scores["scores"]:
        settings = preset.sampling.get(score["sampling"])
        if settings is None:
            raise UserError(
                f"the scores of {run.name} name the sampling {score['sampling']!r}; expected one "
                f"of {[*preset.sampling]}: delete its scores.json and run the same command again"
            )
        how = {
            "sampling": score["sampling"],
            "solver": settings.solver,
            "steps": settings.steps,
            "guidance": settings.guidance,
        }
        rows.append({**run.identity(), **how, **score, **cost})
    return rows


def training_rows(run: RunConfig, folder: Path) -> list[dict]:
    """What training every block of a run took, out of its parts' JSON."""
    rows = []
    for name in run.parts:
        part = read_record(folder / f"{name}.json", TRAINED)
        for block in part["blocks"]:
            rows.append(
                {
                    **run.identity(),
                    "part": name,
                    **block,
                    **{
                        key: part[key]
                        for key in (
                            "iterations",
                            "parameters",
                            "seconds",
                            "seconds_per_iteration",
                            "peak_memory_bytes",
                            "peak_memory_kind",
                        )
                    },
                }
            )
    return rows


def read_curve(path: Path) -> list[dict[str, str]]:
    """Rows of a training curve.

    Raises:
        UserError: the file is missing or lacks a column or a cell.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the step that makes it") from None
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{path} is not a whole table ({error}); delete it and train again"
        ) from None
    if not rows or any(list(row) != CURVE or None in row.values() for row in rows):
        raise UserError(f"{path} is not a whole table of {CURVE}; delete it and train again")
    return rows


def curve_rows(run: RunConfig, folder: Path) -> list[dict]:
    """Loss and gradient norm over the training of a run, out of its parts' CSV."""
    rows = []
    for name in run.parts:
        path = folder / f"{name}-curve.csv"
        expected = read_record(folder / f"{name}.json", dict).get("curve_sha256")
        if path.is_file() and expected not in (None, sha256(path)):
            raise UserError(f"{path} differs from its digest; delete it and train again")
        rows += [{**run.identity(), **row} for row in read_curve(path)]
    return rows


def _sampling_row(run: RunConfig, name: str, folder: Path) -> dict:
    record = read_record(folder / f"samples-{name}.json", SAMPLED)
    keys = (
        "trajectories",
        "seconds",
        "trajectories_per_second",
        "layer_evaluations_per_trajectory",
        "peak_memory_bytes",
        "peak_memory_kind",
    )
    settings = {key: record["settings"][key] for key in ("solver", "steps", "guidance")}
    return {
        **run.identity(),
        "sampling": name,
        **settings,
        **{key: record[key] for key in keys},
    }


def class_grid(images: Tensor, labels: Tensor, per_class: int) -> np.ndarray:
    """The first samples of every class, a class a column.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N].

    Returns:
        uint8 [per_class·H, classes·W, 3] of the first ten classes; those with fewer samples
        leave black squares.
    """
    _, channels, height, width = images.shape
    classes = min(int(labels.max()) + 1, SHOWN_CLASSES)
    grid = np.zeros((per_class * height, classes * width, 3), np.uint8)
    for c in range(classes):
        for row, image in enumerate(images[labels == c][:per_class]):
            pixels = image.expand(3, -1, -1) if channels == 1 else image
            grid[row * height : (row + 1) * height, c * width : (c + 1) * width] = pixels.permute(
                1, 2, 0
            ).numpy()
    return grid


def write_grid(path: Path, samples: Path) -> None:
    """A PNG of the first samples of every class, at their own resolution."""
    from PIL import Image

    grid = class_grid(*load_samples(samples), PER_CLASS)
    with atomic_path(path) as temporary:
        Image.fromarray(grid).save(temporary, format="png")


def _settings(preset: Preset, name: str, results: Path, provenance: dict) -> list[dict]:
    """What a reader must know to place the numbers, as key and value."""
    data = read_record(results / "data" / "dataset.json", DATASET)
    found = {
        "preset": name,
        "description": preset.description,
        "dataset": data["name"],
        "dataset_note": data["note"],
        "train_images": data["splits"]["train"]["count"],
        "test_images": data["splits"]["test"]["count"],
        "image_size": data["image_size"],
        "channels": data["channels"],
        "classes": data["classes"],
        **preset.network.model_dump(),
        **preset.noise.model_dump(),
        **preset.training.model_dump(),
        "seeds": len(preset.sweep.seeds),
        "extractor": preset.evaluation.extractor,
    }
    digits_cnn = results / "data" / "digits_cnn.json"
    if preset.evaluation.extractor == "digits_cnn":
        accuracy = read_record(digits_cnn, {"test_accuracy": number})["test_accuracy"]
        found["extractor_test_accuracy"] = accuracy
    for key in ("diffusionblocks", "commit", "clean", "python", "device", "device_kind", "threads"):
        found[key] = provenance[key]
    found["torch"] = provenance["packages"]["torch"]
    return [{"key": key, "value": value} for key, value in found.items()]


def write_tables(
    preset: Preset,
    name: str,
    results: Path,
    output: Path,
    finished: list[RunConfig] | None = None,
) -> None:
    """Write every table of a finished sweep.

    Args:
        preset: the sweep.
        name: what the preset is called in the tables.
        results: folder with data/ and runs/.
        output: folder for the CSV files, and for pictures of samples in ``samples/``.
        finished: the runs to tabulate, of a sweep that is not; every run when absent.

    Raises:
        UserError: a file of a run is missing or damaged.
    """
    tables: dict[str, list[dict]] = {
        key: [] for key in ("scores", "validation_loss", "training", "curves", "sampling")
    }
    for run in preset.runs() if finished is None else finished:
        folder = results / "runs" / run.name
        scores = read_record(folder / "scores.json", SCORES)
        tables["scores"] += _score_rows(run, preset, scores)
        tables["validation_loss"] += [{**run.identity(), **row} for row in scores["validation"]]
        tables["training"] += training_rows(run, folder)
        tables["curves"] += curve_rows(run, folder)
        for sampling in preset.sampling:
            tables["sampling"].append(_sampling_row(run, sampling, folder))
            samples = folder / f"samples-{sampling}.safetensors"
            write_grid(output / "samples" / f"{run.name}__{sampling}.png", samples)
    rates = {run.name: run.learning_rate_scale for run in preset.runs()}
    if set(rates.values()) != {1.0}:
        # Only a sweep of learning rates has the column; readers leave those runs out unless asked.
        for row in itertools.chain.from_iterable(tables.values()):
            row["learning_rate_scale"] = rates[row["run"]]
    floor = read_record(results / "data" / "floor.json", FLOOR)
    tables["floors"] = [{"dataset": preset.data.name, **row} for row in floor["scores"]]
    tables["setting"] = _settings(preset, name, results, floor["provenance"])
    for table, rows in tables.items():
        write_csv(output / f"{table}.csv", rows)
