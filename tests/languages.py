"""A tiny language preset, prepared text and trained runs for tests."""

import copy

import yaml
from tiny_preset import TINY

LANGUAGE = {
    "data": {"name": "pydoc_topics"},
    "network": {"layers": 6, "width": 16, "heads": 2, "context_length": 24},
    "training": {
        "iterations": 6,
        "batch_size": 4,
        "learning_rate": 3.0e-3,
        "ema_halflife_samples": 40,
        "warmup_iterations": 2,
        "checkpoint_every": 2,
    },
    "generation": {
        "plain": {
            "prompts": 6, "prompt_length": 8, "continuations": 2, "new_tokens": 10, "steps": 4,
            "batch_size": 5,
        }
    },
    "evaluation": {"sequences": 8, "judge": {"iterations": 4}},
    "compute": {"device": "cpu", "threads": 1},
    "sweep": {
        "seeds": [0],
        "variants": [
            {"method": "end_to_end", "iterations_scale": [1, 2]},
            {"method": "blockwise_independent", "blocks": [2, 3]},
            {"method": "blockwise_interleaved", "blocks": 3, "embedding": ["frozen", "joint"]},
        ],
    },
}  # fmt: skip


def write_preset(path, **sections):
    """Write the tiny preset with sections of its language half replaced; returns the path."""
    tree = copy.deepcopy(TINY) | {"language": copy.deepcopy(LANGUAGE) | sections}
    path.write_text(yaml.safe_dump(tree))
    return path
