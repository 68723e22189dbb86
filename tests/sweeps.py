"""A finished sweep with known truth: tables, run files and figures, with nothing trained."""

import math
from pathlib import Path

import numpy as np
import torch
import yaml

from diffusionblocks.config import load_preset
from diffusionblocks.files import write_json
from diffusionblocks.report import style
from diffusionblocks.report.tables import class_grid, write_csv

PRESET = {
    "description": "simulated <results> & nothing else",
    "task": "images",
    "data": {"name": "digits"},
    "network": {"layers": 12, "width": 16, "heads": 2, "patch": 4},
    "training": {
        "iterations": 60,
        "batch_size": 16,
        "learning_rate": 1.0e-3,
        "ema_halflife_samples": 200,
    },
    "sampling": {"plain": {"samples": 24, "steps": 6, "batch_size": 16}},
    "evaluation": {"extractor": "digits_cnn", "validation_bands": 6, "validation_samples": 48},
    "sweep": {
        "seeds": [0, 1, 2, 3],
        "variants": [
            {"method": "end_to_end"},
            {
                "method": "blockwise_independent",
                "blocks": [2, 3, 4, 6],
                "partition": ["equal_mass", "uniform_log_sigma"],
            },
            {"method": "blockwise_independent", "blocks": 3, "overlap": 0.05},
        ],
    },
}
PROVENANCE = {
    "diffusionblocks": "0.1.0",
    "commit": "0" * 40,
    "clean": True,
    "device": "simulated",
    "packages": {"torch": "none"},
}
#: ln of the Fréchet distance relative to end to end: blocks help, uniform ranges hurt.
TRUTH = {"equal_mass": -0.2, "uniform_log_sigma": 0.3}


def relative(run):
    """ln of a run's true Fréchet distance over end to end's."""
    if run.blocks == 1:
        return 0.0
    return TRUTH[run.partition] + 0.1 * (run.blocks > 3)


def curve(run, block, rng):
    """Rows of a training curve that falls and has tails."""
    falling = 1.5 * np.exp(-np.arange(60) / 30) + 0.5
    return [
        {
            "block": block,
            "iteration": i + 1,
            "loss": loss * rng.lognormal(0, 0.05),
            "grad_norm": rng.lognormal(0, 0.5),
        }
        for i, loss in enumerate(falling)
    ]


def write_sweep(root: Path, noise: float = 0.02, seed: int = 0):
    """Write the preset and results/<preset> under a folder.

    Returns:
        the preset's file, the preset, and the folder of its results.
    """
    rng = np.random.default_rng(seed)
    file = root / "simulated.yaml"
    file.write_text(yaml.safe_dump(PRESET))
    preset = load_preset(file)
    results = root / "results" / "simulated"
    tables = {k: [] for k in ("scores", "training", "curves", "sampling")}
    luck = rng.normal(0, 0.1, len(preset.sweep.seeds))
    for run in preset.runs():
        named = run.identity()
        fid = 50 * math.exp(relative(run) + luck[run.seed] + rng.normal(0, noise))
        how = {"sampling": "plain", "solver": "euler", "steps": 6, "guidance": 1.0}
        score = {
            "metric": "fid", "value": fid, "better": "lower", "split": "test",
            "extractor": "digits_cnn", "samples": 24, "reference_samples": 597,
            "layer_evaluations": 1000, "iterations": 60,
        }  # fmt: skip
        tables["scores"].append({**named, **how, **score})
        rate = 100.0 * run.blocks * rng.lognormal(0, 0.01)
        speed = {
            "trajectories": 24, "seconds": 24 / rate, "trajectories_per_second": rate,
            "layer_evaluations_per_trajectory": 72 // run.blocks,
        }  # fmt: skip
        tables["sampling"].append({**named, **how, **speed})
        for number, part in enumerate(run.parts):
            seconds = 12 / run.blocks * rng.lognormal(0, 0.01)
            block = {
                "block": number, "first_layer": 0, "layers": 12 // run.blocks, "sigma_lo": 0.002,
                "sigma_hi": 80.0, "layer_evaluations": 1000 // run.blocks,
            }  # fmt: skip
            record = {"iterations": 60, "parameters": 1000, "seconds": seconds}
            tables["training"].append({**named, "part": part, **block, **record})
            tables["curves"] += [{**named, **row} for row in curve(run, number, rng)]
            config = {"config": run.model_dump(mode="json"), "config_hash": run.hash}
            write_json(
                results / "runs" / run.name / f"{part}.json",
                {**config, **record, "blocks": [block], "provenance": PROVENANCE},
            )
        picture(results / "tables/samples" / f"{run.name}__plain.png")
    for name, rows in tables.items():
        write_csv(results / "tables" / f"{name}.csv", rows)
    floor = {k: score[k] for k in ("metric", "better", "split", "extractor", "samples")}
    floor |= {"dataset": "digits", "reference_samples": 597, "value": 6.7}
    write_csv(results / "tables/floors.csv", [floor])
    setting = {
        "preset": "simulated", "description": PRESET["description"], "dataset": "digits",
        "layers": 12, "width": 16, "iterations": 60, "commit": "0" * 40, "clean": True,
    }  # fmt: skip
    pairs = [{"key": key, "value": value} for key, value in setting.items()]
    write_csv(results / "tables/setting.csv", pairs)
    return file, preset, results


def picture(path: Path):
    """A picture of samples, as the tables hold them."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    grid = class_grid(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10), 1)
    Image.fromarray(grid).save(path)


def draw_figures(results: Path, names):
    """Figures under the names that the ledger mentions, and the notebook's page."""
    import pandas as pd

    figure = style.empty("A figure", "Simulated results have none.")
    for name in names:
        style.save(figure, pd.DataFrame({"x": [1]}), results / "figures", name)
    page = results / "report/image_quality.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("<!doctype html><title>Image quality</title><p>The notebook's page.</p>")
