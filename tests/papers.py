"""Stand-ins for what paper scale is made of: a few images, an autoencoder with random weights."""

import numpy as np
import torch
import yaml
from PIL import Image

from diffusionblocks.config import load_preset

CLASSES = ["apple", "bee", "cat"]


def image_folder(folder, per_class=2, side=300):
    """train/CLASS/*.png and val/CLASS/*.png, of sizes that need cutting."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for c, name in enumerate(CLASSES):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(per_class):
                small = rng.integers(0, 256, (6, 6 + c, 3), np.uint8)
                wide = side + 20 * i
                Image.fromarray(small).resize((wide, side)).save(place / f"{i}.png")
    return folder


def autoencoder(folder):
    """The class of the published autoencoder at its shapes, a few channels wide."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[4] * 4,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=256,
    )
    model.save_pretrained(folder)
    return folder


def cifar10_folder(folder, count=8):
    """train.parquet and test.parquet of coloured noise, laid out as CIFAR-10's are."""
    import datasets

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=[f"c{i}" for i in range(10)])}
    )
    for split in ("train", "test"):
        pictures = [
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(count)
        ]
        rows = {"img": pictures, "label": [i % 10 for i in range(count)]}
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"{split}.parquet")
    return folder


def tiny_latents(folder, images, weights, **training):
    """A preset of latents with a tiny network, as the file of it."""
    preset = {
        "description": "latents for tests",
        "task": "images",
        "data": {
            "name": "imagenet256",
            "path": str(images),
            "autoencoder": str(weights),
            "scored_images": 5,
        },
        "network": {"layers": 2, "width": 16, "heads": 2, "patch": 8},
        "training": {
            "iterations": 3,
            "batch_size": 4,
            "learning_rate": 1.0e-3,
            "ema_halflife_samples": 100,
            **training,
        },
        "sampling": {"plain": {"samples": 6, "steps": 2, "batch_size": 4}},
        "evaluation": {
            "extractor": "efficientnet_lite0", "validation_bands": 2, "validation_samples": 4,
        },
        "compute": {"device": "cpu", "threads": 1},
        "sweep": {
            "seeds": [0],
            "variants": [
                {"method": "end_to_end"},
                {"method": "blockwise_independent", "blocks": 2},
            ],
        },
    }  # fmt: skip
    path = folder / "latents.yaml"
    path.write_text(yaml.safe_dump(preset))
    return path, load_preset(path)
