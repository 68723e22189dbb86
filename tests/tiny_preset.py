"""The smallest preset that has everything; in a module of its own, as there are two conftests."""

TINY = {
    "description": "a preset for tests",
    "task": "images",
    "data": {"name": "digits"},
    "network": {"layers": 6, "width": 16, "heads": 2, "patch": 4},
    "training": {
        "iterations": 8,
        "batch_size": 16,
        "learning_rate": 1.0e-3,
        "ema_halflife_samples": 200,
        "warmup_iterations": 2,
        "checkpoint_every": 3,
    },
    "sampling": {"plain": {"samples": 24, "steps": 6, "batch_size": 16}},
    "evaluation": {"extractor": "digits_cnn", "validation_bands": 6, "validation_samples": 48},
    "compute": {"device": "cpu", "threads": 1},
    "sweep": {
        "seeds": [0],
        "variants": [
            {"method": "end_to_end"},
            {"method": "blockwise_independent", "blocks": [2, 3]},
            {"method": "blockwise_interleaved", "blocks": 3},
        ],
    },
}
