"""All scores of a set of images: what a run is given, and what real held-out images get."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import EvaluationConfig, Preset
from ..data.images import SPLITS, ImageSplit, load_split
from .digits_cnn import classify, load_digits_cnn
from .fidelity import features, reference_features, scores
from .nearest import nearest_distances

#: Decides the random subsets of KID: the same for every run, so that runs are comparable.
SUBSET_SEED = 0


def _reference(split: ImageSplit, settings: EvaluationConfig) -> Tensor:
    """The images of a split that scores compare with."""
    return split.images[: settings.reference_samples]


def _distribution_scores(
    found: Tensor, against: ImageSplit, name: str, settings, weights, cache, device
) -> list[dict[str, Any]]:
    """FID, KID, precision and recall of features against those of one split."""
    extractor = settings.extractor
    reference = reference_features(cache, _reference(against, settings), extractor, weights, device)
    rows = scores(found, reference, SUBSET_SEED)
    return [
        {
            "metric": s.metric,
            "value": s.value,
            "better": s.better,
            "split": name,
            "extractor": extractor,
            "samples": s.samples,
            "reference_samples": s.reference_samples,
        }
        for s in rows
    ]


def _accuracy(images: Tensor, labels: Tensor, weights: Path) -> dict[str, Any]:
    """Share of images that the digits CNN gives the class they were drawn for."""
    right = classify(load_digits_cnn(weights), images) == labels
    return {
        "metric": "label_accuracy",
        "value": right.double().mean().item(),
        "better": "higher",
        "split": "",
        "extractor": "digits_cnn",
        "samples": len(labels),
        "reference_samples": 0,
    }


def _memorising(
    images: Tensor, held_out: Tensor, train: Tensor, device: torch.device
) -> list[dict[str, Any]]:
    """Distance to the nearest training image, and its ratio to that of held-out images."""
    own = nearest_distances(images, train, device).mean().item()
    real = nearest_distances(held_out, train, device).mean().item()
    shared = {
        "split": "train",
        "extractor": "pixels",
        "samples": len(images),
        "reference_samples": len(train),
    }
    # Neither direction is better: far below 1 is memorising, far above is poor quality.
    return [
        {"metric": "nearest_train_distance", "value": own, "better": "neutral", **shared},
        {
            "metric": "nearest_train_distance_ratio",
            "value": own / real,
            "better": "neutral",
            **shared,
        },
    ]


def sample_scores(
    preset: Preset,
    images: Tensor,
    labels: Tensor,
    data: Path,
    weights: Path | None,
    cache: Path,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Every score of one set of samples.

    Args:
        images: uint8 [N, C, H, W].
        labels: the classes they were drawn for, int64 [N].
        data: folder of the prepared data set.
        weights: the extractor's weights, if they are a local file.
        cache: folder of reference features.

    Returns:
        Rows of metric, value, better, split, extractor, samples, reference_samples.
    """
    settings = preset.evaluation
    splits = {name: load_split(data, name) for name in SPLITS}
    found = features(images, settings.extractor, weights, device)
    rows = []
    for name, split in splits.items():
        rows += _distribution_scores(found, split, name, settings, weights, cache, device)
    if settings.extractor == "digits_cnn":
        rows.append(_accuracy(images, labels, weights))
    train, held_out = (_reference(splits[name], settings) for name in SPLITS)
    return rows + _memorising(images, held_out[: len(images)], train, device)


def floor_scores(
    preset: Preset, data: Path, weights: Path | None, cache: Path, device: torch.device
) -> list[dict[str, Any]]:
    """The scores of real images in the place of samples: no model can be asked for better.

    Against the training split the real images are held-out ones; against the test split they
    are training ones. Counts are those of the preset's samplings, or all there are, if fewer.
    """
    settings = preset.evaluation
    splits = {name: load_split(data, name) for name in SPLITS}
    train, held_out = splits["train"], splits["test"]
    rows = []
    for count in sorted({s.samples for s in preset.sampling.values()}):
        for name, images in (("train", held_out.images), ("test", train.images)):
            found = features(images[:count], settings.extractor, weights, device)
            rows += _distribution_scores(
                found, splits[name], name, settings, weights, cache, device
            )
        if settings.extractor == "digits_cnn":
            rows.append(_accuracy(held_out.images[:count], held_out.labels[:count], weights))
        real = held_out.images[:count]
        rows += _memorising(real, real, _reference(train, settings), device)
    return rows
