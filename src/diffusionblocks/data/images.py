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
from ..files import atomic_path, sha256, write_json
from ..records import DATASET, read_record

SPLITS = ("train", "test")
CIFAR10_HUB = "uoft-cs/cifar10"
#: SHA-256 of the hub's files at revisions where they are published: revision → split → digest.
CIFAR10_DIGESTS = {
    "0b2714987fa478483af9968de7c934580d0bb9a2": {
        "train": "8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883",
        "test": "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
    }
}
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


def _local_files(folder: Path) -> dict[str, Path]:
    """The parquet file of every split in a folder."""
    files = {split: folder / f"{split}.parquet" for split in SPLITS}
    for file in files.values():
        if not file.is_file():
            raise UserError(
                f"data.path: {file} does not exist; expected train.parquet and test.parquet "
                f"in {folder}: correct data.path or remove it to load the hub's copy"
            )
    return files


def _hub_file(split: str, revision: str, cache: str) -> Path:
    """A split's parquet file at one commit of the hub; data only, no code of the hub runs."""
    from huggingface_hub import hf_hub_download

    name = f"plain_text/{split}-00000-of-00001.parquet"
    try:
        found = hf_hub_download(
            CIFAR10_HUB, name, repo_type="dataset", revision=revision, cache_dir=cache
        )
    except Exception as error:  # no network, no such revision, a broken cache: many kinds
        raise UserError(
            f"cannot read {CIFAR10_HUB} at {revision} ({error}); fetch it again or set data.path"
        ) from None
    expected = CIFAR10_DIGESTS.get(revision, {}).get(split)
    if expected is not None and sha256(Path(found)) != expected:
        raise UserError(
            f"{CIFAR10_HUB} {name} at {revision} differs from its published digest {expected}; "
            "fetch it again or set data.path"
        )
    return Path(found)


def load_cifar10(config: DataConfig) -> Decoded:
    """CIFAR-10 through ``datasets``: the hub's uoft-cs/cifar10, or local parquet files.

    Raises:
        UserError: a file is missing, truncated or lacks the columns img and label; the hub's
            cannot be fetched or are not those of their digests.
    """
    import datasets

    datasets.disable_progress_bars()
    images, labels = {}, {}
    with tempfile.TemporaryDirectory() as cache:
        if config.path is not None:
            files = _local_files(config.path)
        else:
            files = {split: _hub_file(split, config.revision, cache) for split in SPLITS}
        for split, file in files.items():
            try:
                table = datasets.load_dataset(
                    "parquet", data_files=str(file), split="train", cache_dir=cache
                )
            except Exception as error:  # `datasets` raises many kinds for one broken file
                raise UserError(
                    f"cannot read {file} ({error.__cause__ or error}); fetch it again or set "
                    "data.path"
                ) from None
            if not {"img", "label"} <= set(table.column_names):
                raise UserError(
                    f"{file} has columns {table.column_names}; expected img and label: "
                    "correct data.path"
                )
            try:
                table = table.cast_column("img", datasets.Image())
                stacked = np.stack([np.asarray(i.convert("RGB")) for i in table["img"]])
                labels[split] = np.asarray(table["label"], dtype=np.int64)
            except Exception as error:  # whatever the columns hold in the place of pictures
                raise UserError(
                    f"{file} holds something else than pictures of one size in img and classes "
                    f"in label ({error}); correct data.path"
                ) from None
            images[split] = np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
    feature = table.features["label"]
    names = getattr(feature, "names", None) or [str(i) for i in range(10)]
    local = "local parquet; the pixels are those of its JPEG or PNG encoding"
    hub = f"hub {CIFAR10_HUB} at {config.revision}"
    return Decoded(images, labels, names, local if config.path else hub)


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
    description = read_record(Path(folder) / "dataset.json", DATASET)
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
        try:
            arrays[kind] = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        except (ValueError, TypeError, EOFError) as error:
            raise UserError(
                f"{path} is no array of numbers ({error}); delete {folder} and run the same "
                "command again"
            ) from None
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
