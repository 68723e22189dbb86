"""The JSON that jobs leave for each other, checked where it is read.

A *shape* says what a record must hold: a type, a predicate, a dictionary of required keys and
their shapes (more keys may be there), or a list of one shape. Plain Python: planning reads it.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import read_json, sha256

Shape = type | Callable[[Any], bool] | dict[str, Any] | list


def number(value: Any) -> bool:
    """A finite number; JSON readers take 1e999 for infinity."""
    return type(value) in (int, float) and math.isfinite(value)


def count(value: Any) -> bool:
    """A whole number, 0 or more, that every reader can hold."""
    return type(value) is int and 0 <= value < 2**53


def number_or_none(value: Any) -> bool:
    """A finite number, or nothing where there is none: JSON has no NaN."""
    return value is None or number(value)


def token_type(value: Any) -> bool:
    """The type of packed tokens in a file."""
    return value in ("<u2", "<u4")


def plain_name(value: Any) -> bool:
    """The name of a file beside the record, never a path out of its folder."""
    return isinstance(value, str) and value not in ("", ".", "..") and Path(value).name == value


def fault(value: Any, shape: Shape, where: str = "") -> str:
    """What is wrong with a value, "" where it has the shape."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{where or 'it'} is no object of keys"
        for key, inner in shape.items():
            place = f"{where}.{key}" if where else key
            if key not in value:
                return f"{place} is missing"
            if found := fault(value[key], inner, place):
                return found
        return ""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where or 'it'} is no list"
        faults = (fault(item, shape[0], f"{where}.{i}") for i, item in enumerate(value))
        return next(filter(None, faults), "")
    good = isinstance(value, shape) if isinstance(shape, type) else shape(value)
    wanted = shape.__name__.replace("_", " ")
    return "" if good else f"{where or 'it'} is no {wanted}"


def read_record(path: Path, shape: Shape) -> Any:
    """Read a record and check that it has the shape.

    Raises:
        UserError: the file is missing, not JSON, or lacks what its step writes.
    """
    record = read_json(path)
    if found := fault(record, shape):
        raise UserError(
            f"{path} is not what its step writes ({found}); delete it and run the same "
            "command again"
        )
    return record


def require_digest(path: Path) -> None:
    """Refuse a file that differs from the digest in the record beside it, where there is one.

    Raises:
        UserError: the file is missing or differs, or its record is damaged.
    """
    record = path.with_suffix(".json")
    expected = read_record(record, dict).get("sha256") if record.exists() else None
    if not path.is_file() or expected not in (None, sha256(path)):
        raise UserError(
            f"{path} is missing or differs from its digest in {record.name}; delete it and run "
            "the step that makes it again"
        )


#: One block of a manifest or a part; see ``partition.NoiseRange``.
RANGE = {"sigma_lo": number, "sigma_hi": number, "train_lo": number, "train_hi": number}
#: What a part and a manifest hold under the name of their task: the task's description.
FACTS = {
    "images": {"image_size": count, "channels": count, "classes": count},
    "language": {
        "vocabulary": count,
        "context_length": count,
        "tokenizer_sha256": str,
        "sigma_data": number,
    },
}
#: ``<part>.json``, beside a part's weights, but for its task's facts.
PART = {
    "config_hash": str,
    "file": plain_name,
    "sha256": str,
    "blocks": [{"block": count, **RANGE}],
}
MANIFEST = {
    "run": dict,
    "config": dict,
    "config_hash": str,
    "iterations": count,
    "layer_evaluations": count,
    "blocks": [
        {
            "block": count,
            "file": plain_name,
            "sha256": str,
            "layers": [count],
            "depth": count,
            **RANGE,
        }
    ],
}
#: ``state.json`` of a checkpoint.
STATE = {"step": count, "config_hash": str, "file": plain_name, "sha256": str, "seconds": number}
_SPLIT = {"count": count, "images_sha256": str, "labels_sha256": str}
DATASET = {
    "name": str,
    "note": str,
    "image_size": count,
    "channels": count,
    "classes": count,
    "splits": {"train": _SPLIT, "test": _SPLIT},
}
SCORE = {
    "metric": str,
    "value": number,
    "better": str,
    "split": str,
    "extractor": str,
    "samples": count,
    "reference_samples": count,
}
PROVENANCE = {
    "diffusionblocks": str,
    "python": str,
    "device": str,
    "device_kind": str,
    "threads": count,
    "packages": dict,
}
SCORES = {
    "config_hash": str,
    "layer_evaluations": count,
    "iterations": count,
    "scores": [{"sampling": str, **SCORE}],
    "validation": [{"loss": number}],
}
FLOOR = {"scores": [SCORE], "provenance": PROVENANCE}
#: ``<part>.json`` again, for the tables: what training cost.
TRAINED = {
    "iterations": count,
    "parameters": count,
    "seconds": number,
    "seconds_per_iteration": number,
    "peak_memory_bytes": number,
    "peak_memory_kind": str,
    "blocks": [dict],
}
SAMPLED = {
    "config_hash": str,
    "settings": {"solver": str, "steps": count, "guidance": number},
    "trajectories": count,
    "seconds": number,
    "trajectories_per_second": number,
    "layer_evaluations_per_trajectory": count,
    "peak_memory_bytes": number,
    "peak_memory_kind": str,
}
_TEXT_SPLIT = {"tokens": count, "characters": count, "documents": count, "sha256": str}
#: ``text.json``, beside a prepared text.
TEXT = {
    "name": str,
    "note": str,
    "tokenizer": str,
    "tokenizer_sha256": str,
    "vocabulary": count,
    "dtype": token_type,
    "splits": dict.fromkeys(("train", "judge", "validation", "test"), _TEXT_SPLIT),
}
_TEXT_SCORE = {**SCORE, "sampling": str, "value": number_or_none, "error": number_or_none}
TEXT_SCORES = {
    "iterations": count,
    "layer_evaluations": count,
    "scores": [{**_TEXT_SCORE, "note": str}],
    "bound_curve": [{"split": str, "sigma_0": number, "bound": number_or_none}],
    "samples": [{"prompt": str, "text": str}],
}
TEXT_FLOOR = {
    "scores": [{**_TEXT_SCORE, "kind": str, "note": str}],
    "samples": [{"kind": str, "prompt": str, "text": str}],
    "provenance": PROVENANCE,
}
TEXT_SAMPLED = {
    "settings": {
        "temperature": number,
        "top_p": number,
        "steps": count,
        "prompts": count,
        "continuations": count,
        "new_tokens": count,
    },
    "tokens": count,
    "seconds": number,
    "tokens_per_second": number,
    "layer_passes_per_token": number,
}
