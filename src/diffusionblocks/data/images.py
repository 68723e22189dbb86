"""Images: decoded once into checksummed, memory-mapped uint8 arrays.

To add a data set write one loader that returns :class:`Decoded` and name it in
:data:`LOADERS` (and in ``DataConfig``).
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import DataConfig
from ..errors import UserError
from ..files import atomic_path, read_json, sha256, write_json

SPLITS = ("train", "test")
#: Digits for training; the other 597 of the 1,797 are held out.
DIGITS_TRAIN = 1200


@dataclass(frozen=True)
class Decoded:
    """A data set in memory: per split uint8 images [N, C, H, W] and int64 labels [N]."""

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    class_names: list[str]
    note: str


def load_digits(config: DataConfig) -> Decoded:
    """scikit-learn's 8×8 grey digits, embedded in the package; 0 … 16 stretched to 0 … 255."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(bunch.images))
    images = np.rint(bunch.images[order, None] * (255 / 16)).astype(np.uint8)
    labels = bunch.target[order].astype(np.int64)
    cut = {"train": slice(0, DIGITS_TRAIN), "test": slice(DIGITS_TRAIN, None)}
    return Decoded(
        {split: images[cut[split]] for split in SPLITS},
        {split: labels[cut[split]] for split in SPLITS},
        [str(i) for i in range(10)],
        "scikit-learn digits, shuffled once with a fixed seed and split",
    )


def load_cifar10(config: DataConfig) -> Decoded:
    """CIFAR-10 through ``datasets``: the hub's uoft-cs/cifar10, or local parquet files.

    Raises:
        UserError: a file is missing, truncated or lacks the columns img and label.
    """
    import datasets

    files = {split: Path(config.path or "") / f"{split}.parquet" for split in SPLITS}
    if config.path is not None:
        for file in files.values():
            if not file.is_file():
                raise UserError(
                    f"data.path: {file} does not exist; expected train.parquet and test.parquet "
                    f"in {config.path}: correct data.path or remove it to load the hub's copy"
                )
    datasets.disable_progress_bars()
    images, labels = {}, {}
    with tempfile.TemporaryDirectory() as cache:
        for split, file in files.items():
            try:
                if config.path is not None:
                    table = datasets.load_dataset(
                        "parquet", data_files=str(file), split="train", cache_dir=cache
                    )
                else:
                    table = datasets.load_dataset("uoft-cs/cifar10", split=split, cache_dir=cache)
            except Exception as error:  # `datasets` raises many kinds for one broken file
                source = file if config.path is not None else "uoft-cs/cifar10"
                reason = " ".join(str(error.__cause__ or error).split())
                raise UserError(
                    f"cannot read {source} ({reason}); fetch it again or set data.path"
                ) from None
            if not {"img", "label"} <= set(table.column_names):
                raise UserError(
                    f"{file} has columns {table.column_names}; expected img and label: "
                    "correct data.path"
                )
            table = table.cast_column("img", datasets.Image())
            stacked = np.stack([np.asarray(i.convert("RGB")) for i in table["img"]])
            images[split] = np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
            labels[split] = np.asarray(table["label"], dtype=np.int64)
    feature = table.features["label"]
    names = getattr(feature, "names", None) or [str(i) for i in range(10)]
    local = "local parquet; the pixels are those of its JPEG or PNG encoding"
    return Decoded(images, labels, names, local if config.path else "hub uoft-cs/cifar10")


def load_imagenet256(config: DataConfig) -> Decoded:
    """The images of ImageNet that samples are scored against; networks see latents instead."""
    from .imagenet import HUB, load_pixels

    found = {split: load_pixels(config, split) for split in SPLITS}
    return Decoded(
        {split: images for split, (images, _, _) in found.items()},
        {split: labels for split, (_, labels, _) in found.items()},
        found["train"][2],
        f"{'local images' if config.path else HUB}, cut to the middle, evenly spaced for scoring",
    )


LOADERS: dict[str, Callable[[DataConfig], Decoded]] = {
    "digits": load_digits,
    "cifar10": load_cifar10,
    "imagenet256": load_imagenet256,
}


def prepare_images(config: DataConfig, folder: Path) -> dict:
    """Decode a data set into ``folder``; dataset.json, with the digests, is written last.

    Returns:
        What dataset.json holds.
    """
    decoded = LOADERS[config.name](config)
    splits = {}
    for split in SPLITS:
        splits[split] = {"count": len(decoded.labels[split])}
        for kind, array in (("images", decoded.images[split]), ("labels", decoded.labels[split])):
            path = folder / f"{split}_{kind}.npy"
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            splits[split][f"{kind}_sha256"] = sha256(path)
    _, channels, side, _ = decoded.images["train"].shape
    description = {
        "name": config.name,
        "path": None if config.path is None else str(config.path),
        "classes": len(decoded.class_names),
        "class_names": decoded.class_names,
        "channels": channels,
        "image_size": side,
        "splits": splits,
        "note": decoded.note,
    }
    write_json(folder / "dataset.json", description)
    return description


@dataclass(frozen=True)
class ImageSplit:
    """One split, memory-mapped.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        classes: number of classes.
        digest: SHA-256 of the image file, the cache key of anything computed from it.
    """

    images: Tensor
    labels: Tensor
    classes: int
    digest: str

    def clean(self, n: int) -> Tensor:
        """The first n images, float32 [n, C, H, W] in −1 … 1."""
        return to_unit(self.images[:n])


def load_split(folder: Path, split: str) -> ImageSplit:
    """Open one split of a prepared data set and check it against its digests.

    Raises:
        UserError: the cache is missing, truncated or altered.
    """
    description = read_json(Path(folder) / "dataset.json")
    arrays = {}
    for kind in ("images", "labels"):
        path = Path(folder) / f"{split}_{kind}.npy"
        expected = description["splits"][split][f"{kind}_sha256"]
        if not path.is_file() or sha256(path) != expected:
            raise UserError(
                f"{path} is missing or differs from its digest in dataset.json; "
                f"delete {folder} and run the same command again"
            )
        # Copy-on-write mapping: torch wants writable memory, nothing is written back.
        arrays[kind] = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    return ImageSplit(
        arrays["images"],
        arrays["labels"],
        description["classes"],
        description["splits"][split]["images_sha256"],
    )


def to_unit(images: Tensor) -> Tensor:
    """uint8 0 … 255 → float32 −1 … 1."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float −1 … 1 → uint8, rounded and clipped; the inverse of :func:`to_unit`."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
