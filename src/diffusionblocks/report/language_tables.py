"""Every language run's JSON gathered into tidy CSV, and runs compared at equal diversity."""

import itertools
from pathlib import Path
from typing import Any

from ..config import GenerationConfig, LanguageConfig, TextRun
from ..errors import UserError
from ..evaluation.text.bound import CURVE_COLUMNS
from ..evaluation.text.matched import matched_perplexity
from ..records import TEXT, TEXT_FLOOR, TEXT_SAMPLED, TEXT_SCORES, read_record
from .statistics import METHOD_NAMES
from .tables import curve_rows, training_rows, write_csv

#: The diversity at which judged perplexity is compared.
DIVERSITY = "distinct_2"
JUDGED = "generative_perplexity"
TABLES = (
    "scores",
    "bound_curve",
    "floors",
    "generation",
    "samples",
    "training",
    "curves",
    "setting",
)
_HOW = ("temperature", "top_p", "steps")
_SCORE = ("metric", "value", "error", "better", "split", "extractor", "samples")
_THROUGHPUT = ("tokens", "seconds", "tokens_per_second", "layer_passes_per_token")
_GENERATION = (*_HOW, "grid", "cache", "residency", "prompts", "continuations", "new_tokens")


def _how(generation: GenerationConfig | None) -> dict[str, Any]:
    return {key: "" if generation is None else getattr(generation, key) for key in _HOW}


def _cost(run: TextRun, scores: dict[str, Any]) -> dict[str, Any]:
    """What a run spent; tokens are those that a layer has seen, repeats counted."""
    training = run.training
    seen = training.iterations * training.batch_size * run.network.context_length
    return {
        "iterations": scores["iterations"],
        "layer_evaluations": scores["layer_evaluations"],
        "tokens_seen": seen,
    }


def _score_row(named: dict[str, Any], generation: GenerationConfig | None, score: dict) -> dict:
    sampling = {"sampling": score["sampling"], **_how(generation)}
    kept = {key: score[key] for key in (*_SCORE, "reference_samples", "note")}
    return {**named, **sampling, **kept}


def _values(scores: list[dict[str, Any]], metric: str, names: list[str]) -> list[float]:
    """One metric of every generation, in the order of the names."""
    found = {s["sampling"]: s["value"] for s in scores if s["metric"] == metric}
    return [float("nan") if found[name] is None else found[name] for name in names]


def read_scores(language: LanguageConfig, path: Path) -> dict[str, Any]:
    """The scores of a run, with every metric that runs are matched by.

    Raises:
        UserError: the file is missing or damaged, or a generation of the preset has no score.
    """
    scores = read_record(path, TEXT_SCORES)
    found = {(s["metric"], s["sampling"]) for s in scores["scores"]}
    for wanted in itertools.product((DIVERSITY, JUDGED), language.generation):
        if wanted not in found:
            raise UserError(
                f"{path} has no {wanted[0]} of generation {wanted[1]!r}; delete it and run the "
                "same command again"
            )
    return scores


def shared_target(ranges: list[tuple[float, float]], wanted: float) -> float | None:
    """The diversity nearest to the wanted one that every run reaches; None where there is none.

    Args:
        ranges: least and greatest diversity of every run over its temperatures.
        wanted: that of real text.
    """
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    return None if low > high else min(max(wanted, low), high)


def matched_rows(
    language: LanguageConfig, found: dict[str, dict[str, Any]], real: float
) -> dict[str, dict[str, Any]]:
    """Judged perplexity of every run where all runs are equally varied.

    Args:
        found: name of a run → its scores.
        real: diversity of real text.

    Returns:
        name of a run → a score; NaN where no diversity is reached by every run.
    """
    names = sorted(language.generation, key=lambda name: language.generation[name].temperature)
    diversity = {run: _values(s["scores"], DIVERSITY, names) for run, s in found.items()}
    target = shared_target([(min(d), max(d)) for d in diversity.values()], real)
    rows = {}
    for run, scores in found.items():
        judged = [s for s in scores["scores"] if s["metric"] == JUDGED]
        perplexity = _values(judged, JUDGED, names)
        value = float("nan")
        if target is not None:
            value = matched_perplexity(diversity[run], perplexity, target)
        rows[run] = {
            "sampling": "",
            "metric": "generative_perplexity_matched",
            "value": value,
            "error": float("nan"),
            "better": "lower",
            "split": "",
            "extractor": judged[0]["extractor"],
            "samples": judged[0]["samples"],
            "reference_samples": 0,
            "note": "no diversity that every run reaches"
            if target is None
            else f"{DIVERSITY}={target:.4g}",
        }
    return rows


def _sample_rows(kind: str, named: dict[str, Any], samples: list[dict[str, Any]]) -> list[dict]:
    keys = ("sampling", "number", "prompt", "text")
    return [{"kind": kind, **named, **{key: s.get(key, "") for key in keys}} for s in samples]


def _generation_row(run: TextRun, name: str, folder: Path) -> dict[str, Any]:
    record = read_record(folder / f"samples-{name}.json", TEXT_SAMPLED)
    return {
        **run.identity(),
        "sampling": name,
        **{key: record["settings"][key] for key in _GENERATION},
        **{key: record[key] for key in _THROUGHPUT},
    }


def _floor_row(language: LanguageConfig, score: dict[str, Any]) -> dict[str, Any]:
    generation = language.generation.get(score["sampling"])
    return {
        "kind": score["kind"],
        "dataset": language.data.name,
        "sampling": score["sampling"],
        "temperature": "" if generation is None else 1.0,  # n-grams are drawn as they are
        **{key: score[key] for key in (*_SCORE, "reference_samples", "note")},
    }


def _settings(
    language: LanguageConfig, name: str, description: str, text: dict, provenance: dict
) -> list[dict[str, Any]]:
    """What a reader must know to place the numbers, as key and value."""
    test = text["splits"]["test"]
    generation = next(iter(language.generation.values()))
    judge = language.evaluation.judge
    found = {
        "preset": name,
        "description": description,
        "dataset": text["name"],
        "dataset_note": text["note"],
        "tokenizer": text["tokenizer"],
        "vocabulary": text["vocabulary"],
        "characters_per_token": test["characters"] / test["tokens"],
        **{f"{split}_tokens": facts["tokens"] for split, facts in text["splits"].items()},
        **language.network.model_dump(),
        **language.noise.model_dump(exclude={"sigma_data"}),
        **language.training.model_dump(),
        "seeds": len(language.sweep.seeds),
        "sequences": language.evaluation.sequences,
        "prompts": generation.prompts,
        "prompt_length": generation.prompt_length,
        "new_tokens": generation.new_tokens,
        "featurizer": language.evaluation.featurizer,
        "mauve_scaling": language.evaluation.mauve_scaling,
        "judge": judge.name or f"own, {judge.iterations} iterations on other documents",
    }
    rates = {(run.method, run.learning_rate_scale) for run in language.runs()}
    found["learning_rates"] = ", ".join(
        f"{found['learning_rate'] * scale:g} {METHOD_NAMES[method]}"
        for method, scale in sorted(rates)
    )
    for key in ("diffusionblocks", "commit", "clean", "python", "device", "device_kind", "threads"):
        found[key] = provenance[key]
    found["torch"] = provenance["packages"]["torch"]
    return [{"key": key, "value": value} for key, value in found.items()]


def write_language_tables(
    language: LanguageConfig,
    name: str,
    description: str,
    results: Path,
    output: Path,
    finished: list[TextRun] | None = None,
) -> None:
    """Write every table of a finished language sweep.

    Args:
        name: what the preset is called in the tables.
        description: the preset's own.
        results: folder with data/, runs/ and floor.json.
        output: folder for the CSV files.
        finished: the runs to tabulate, of a sweep that is not; every run when absent.

    Raises:
        UserError: a file of a run is missing or damaged.
    """
    runs = language.runs() if finished is None else finished
    found = {
        run.name: read_scores(language, results / "runs" / run.name / "scores.json") for run in runs
    }
    floor = read_record(results / "floor.json", TEXT_FLOOR)
    real = [s["value"] for s in floor["scores"] if (s["kind"], s["metric"]) == ("real", DIVERSITY)]
    if not real:
        raise UserError(
            f"{results / 'floor.json'} has no {DIVERSITY} of real text; delete it and run the same "
            "command again"
        )
    matched = matched_rows(language, found, real[0])
    tables: dict[str, list[dict]] = {key: [] for key in TABLES}
    nameless = dict.fromkeys(runs[0].identity(), "")
    for row in floor["samples"]:
        tables["samples"] += _sample_rows(row["kind"], nameless, [row])
    for run in runs:
        folder, scores = results / "runs" / run.name, found[run.name]
        for score in [*scores["scores"], matched[run.name]]:
            row = _score_row(run.identity(), language.generation.get(score["sampling"]), score)
            tables["scores"].append(row | _cost(run, scores))
        tables["bound_curve"] += [{**run.identity(), **row} for row in scores["bound_curve"]]
        tables["generation"] += [_generation_row(run, g, folder) for g in language.generation]
        tables["samples"] += _sample_rows("model", run.identity(), scores["samples"])
        tables["training"] += training_rows(run, folder)
        tables["curves"] += curve_rows(run, folder)
    tables["floors"] = [_floor_row(language, score) for score in floor["scores"]]
    text = read_record(results / "data" / "text.json", TEXT)
    tables["setting"] = _settings(language, name, description, text, floor["provenance"])
    for table, rows in tables.items():
        # Only the curve may have no rows: end to end the likelihood is exact.
        write_csv(output / f"{table}.csv", rows, [*runs[0].identity(), "split", *CURVE_COLUMNS])
