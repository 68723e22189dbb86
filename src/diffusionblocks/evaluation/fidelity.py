"""FID, KID, precision and recall through torch-fidelity, one set of features for all four.

torch-fidelity's own cache and its ``calculate_metrics`` keep features as pickles; its
functions are called one by one here, and the cache is safetensors. Importing this module
imports torch-fidelity (seconds), so only scoring jobs should.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)
from torch_fidelity.utils import get_featuresdict_from_dataset

from ..errors import UserError
from ..tensors import save_tensors
from .features import build_extractor, extractor_identity, find_extractor

#: Images a step of feature extraction. On a CPU a small batch stays in the cache: 8 runs
#: EfficientNet 1.7 times as fast as 32.
BATCH_SIZE = {"cpu": 8, "cuda": 128}
#: Largest subset of the kernel distance, and how many are averaged.
KID_SUBSET_SIZE = 1000
KID_SUBSETS = 20
#: Neighbours that span the manifold of precision and recall (Kynkäänniemi et al. 2019).
NEIGHBOURS = 3
#: Rows of the distance matrices of precision and recall held at once.
DISTANCE_ROWS = 1000


class ImageDataset(Dataset):
    """Images uint8 [N, C, H, W], in memory or mapped, as an extractor wants them.

    Grey images are repeated to the channels of the extractor.

    Raises:
        UserError: the images have other channels than one or the extractor's.
    """

    def __init__(self, images: Tensor, extractor: str):
        channels = find_extractor(extractor).channels
        if images.shape[1] not in (1, channels):
            raise UserError(
                f"extractor {extractor}: found images of {images.shape[1]} channels; expected "
                f"{channels}: choose another evaluation.extractor for this data set"
            )
        self.images = images
        self.channels = channels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images[index]
        return image.expand(self.channels, *image.shape[1:])


def features(
    images: Tensor, extractor: str, weights: Path | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Features of images, in their order.

    Args:
        images: uint8 [N, C, H, W], N ≥ 1.
        extractor: a name in :data:`.features.EXTRACTORS`.
        weights: its weights file; None for the one it finds by itself.
        device: where it runs.

    Returns:
        float32 [N, d] on the CPU.

    Raises:
        UserError: the extractor, its weights or the images do not fit, or a feature is not
            finite.
    """
    dataset = ImageDataset(images, extractor)
    network = build_extractor(extractor, weights, device)
    kind = torch.device(device).type
    # save_cpu_ram keeps torch-fidelity from starting worker processes for data in memory.
    found = get_featuresdict_from_dataset(
        dataset, network, BATCH_SIZE[kind], cuda=kind == "cuda", save_cpu_ram=True, verbose=False
    )[find_extractor(extractor).layer]
    _require_finite(found, f"extractor {extractor}")
    return found


def _require_finite(features: Tensor, source: str) -> None:
    if not features.isfinite().all():
        raise UserError(
            f"{source}: found features that are not finite; "
            "expected finite ones: check the extractor's weights file"
        )


def images_digest(images: Tensor) -> str:
    """SHA-256 of the shape and the bytes of uint8 images."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()


def reference_features(
    cache_dir: Path,
    images: Tensor,
    extractor: str,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Features of reference images, computed once for each set of images and extractor.

    The key is the digest of the images given and the extractor's identity, so neither another
    subset nor retrained weights can meet features that are not theirs. A file that is not
    whole is computed again.

    Args:
        cache_dir: folder of the cache; made when missing.
        images: uint8 [N, C, H, W].
        extractor: a name in :data:`.features.EXTRACTORS`.
        weights: its weights file; None for the one it finds by itself.
        device: where it runs.

    Returns:
        float32 [N, d] on the CPU.

    Raises:
        UserError: as :func:`features`, or the cache cannot be written.
    """
    key = f"{images_digest(images)}/{extractor_identity(extractor, weights)}"
    short = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = Path(cache_dir) / f"{extractor}-{short}.safetensors"
    cached = _read_cached(path, key)
    if cached is None:
        cached = features(images, extractor, weights, device)
        save_tensors(path, {"features": cached}, _vouching(key, cached))
    return cached


def _read_cached(path: Path, key: str) -> Tensor | None:
    """Features from the cache; None where the file is missing, damaged or another key's."""
    try:
        with safe_open(path, framework="pt") as file:
            found, said = file.get_tensor("features"), file.metadata()
    # An empty file cannot be mapped: an OSError or a ValueError.
    except (OSError, ValueError, SafetensorError):
        return None
    return found if said == _vouching(key, found) else None


def _vouching(key: str, features: Tensor) -> dict[str, str]:
    """What a cached file says of itself; one entry, as safetensors keeps no order of several."""
    return {"key": f"{key}/{hashlib.sha256(features.contiguous().numpy().data).hexdigest()}"}


@dataclass(frozen=True)
class Score:
    """One score of generated against reference images.

    Attributes:
        metric: fid, kid, precision or recall.
        value: finite.
        better: "lower" or "higher".
        samples: generated images.
        reference_samples: reference images.
        dimensions: features of an image.
        note: what the value depends on beside the images.
    """

    metric: str
    value: float
    better: str
    samples: int
    reference_samples: int
    dimensions: int
    note: str


def frechet_distance(generated: Tensor, reference: Tensor) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of features [N, d] and [M, d] (Heusel et al. 2017)."""
    one, two = (fid_features_to_statistics(x.double()) for x in (generated, reference))
    return fid_statistics_to_metric(one, two, verbose=False)[KEY_METRIC_FID]


def scores(generated: Tensor, reference: Tensor, seed: int) -> list[Score]:
    """FID, KID, precision and recall of generated against reference features.

    All are computed in float64: the kernel of KID is a cube, and in float32 its rounding can
    reach the distance between two sets of real images. FID falls as the images grow in number,
    even between draws of one distribution: compare equal counts only, beside their floor. KID
    is unbiased, so it may be slightly negative.

    Args:
        generated: features [N, d].
        reference: features [M, d].
        seed: decides the random subsets of KID.

    Returns:
        Four finite scores.

    Raises:
        UserError: too few images, or features that are not finite.
    """
    least = NEIGHBOURS + 1
    samples, dimensions = generated.shape
    if min(samples, len(reference)) < least:
        raise UserError(
            f"found {samples} generated and {len(reference)} reference images; "
            f"expected at least {least} of each: raise the sample count"
        )
    _require_finite(generated, "generated images")
    _require_finite(reference, "reference images")
    generated, reference = generated.double(), reference.double()
    subset = min(KID_SUBSET_SIZE, samples, len(reference))
    kid = kid_features_to_metric(
        generated,
        reference,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=subset,
        rng_seed=seed,
        verbose=False,
    )
    manifold = prc_features_to_metric(
        generated,
        reference,
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=DISTANCE_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    rank = min(samples - 1, len(reference) - 1, dimensions)
    neighbours = f"{NEIGHBOURS} nearest neighbours"
    rows = [
        ("fid", frechet_distance(generated, reference), "lower", f"covariances of rank ≤ {rank}"),
        ("kid", kid[KEY_METRIC_KID_MEAN], "lower", f"mean of {KID_SUBSETS} subsets of {subset}"),
        ("precision", manifold[KEY_METRIC_PRECISION], "higher", neighbours),
        ("recall", manifold[KEY_METRIC_RECALL], "higher", neighbours),
    ]
    return [
        Score(metric, value, better, samples, len(reference), dimensions, note)
        for metric, value, better, note in rows
    ]
