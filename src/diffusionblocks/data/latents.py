"""Latents: the images of a set seen through an autoencoder, encoded once and cached.

The cache holds mean and deviation of every image's latent distribution, so that training draws a
fresh latent each time an image comes up. Encoding goes on where it was stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import DataConfig, digest
from ..errors import UserError
from ..files import read_json, sha256, write_json
from ..randomness import stream
from .autoencoder import encode, load_autoencoder, weights_digest
from .imagenet import centre, class_names, open_images

SPLITS = ("train", "test")
#: Values of a latent: channels of the autoencoder, and 256/8 on a side.
CHANNELS, SIDE = 4, 32
BATCH_SIZE = 32
#: Images between two records of progress.
RECORD_EVERY = 1024


class _Centred:
    """Images of a table from number ``first`` on, cut out, with their labels."""

    def __init__(self, table: Any, first: int):
        self.table, self.first = table, first

    def __len__(self) -> int:
        return len(self.table) - self.first

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        row = self.table[self.first + place]
        return centre(row["image"]), row["label"]


def _array(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    """A file of that shape to go on with, or a new one."""
    if path.is_file():
        found = np.load(path, mmap_mode="r+", allow_pickle=False)
        if found.shape == shape and found.dtype == dtype:
            return found
    path.parent.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def _encode_split(
    autoencoder: torch.nn.Module,
    table: Any,
    split: str,
    folder: Path,
    identity: str,
    workers: int,
    report: Callable[[int, int], None],
) -> dict[str, Any]:
    """Encode a split into ``<split>_latents.npy`` and ``<split>_latent_labels.npy``."""
    files = {kind: folder / f"{split}_{kind}.npy" for kind in ("latents", "latent_labels")}
    unfinished = {kind: path.with_name(f".{path.name}.unfinished") for kind, path in files.items()}
    progress = folder / f".{split}_latents.json"
    count, done = len(table), 0
    if progress.is_file() and all(path.is_file() for path in unfinished.values()):
        record = read_json(progress)
        done = record["done"] if record["identity"] == identity else 0
    moments = _array(unfinished["latents"], (count, 2 * CHANNELS, SIDE, SIDE), np.float16)
    labels = _array(unfinished["latent_labels"], (count,), np.int64)
    # Imported here: every training job imports this module, and this takes it a second.
    from torch.utils.data import DataLoader

    loader = DataLoader(_Centred(table, done), batch_size=BATCH_SIZE, num_workers=workers)
    recorded = done
    for images, classes in loader:
        n = len(classes)
        moments[done : done + n] = encode(autoencoder, images).half().cpu().numpy()
        labels[done : done + n] = classes.numpy()
        done += n
        if done - recorded >= RECORD_EVERY or done == count:
            moments.flush()
            labels.flush()
            write_json(progress, {"identity": identity, "done": done})
            recorded = done
            report(done, count)
    found = {"count": count}
    for kind, path in files.items():
        unfinished[kind].replace(path)
        found[f"{kind}_sha256"] = sha256(path)
    progress.unlink()
    return found


def statistics(moments: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and deviation of every channel of latents drawn from their distributions.

    Args:
        moments: float16 [N, 2C, H, W], means then deviations.
    """
    first = second = 0.0
    for start in range(0, len(moments), RECORD_EVERY):
        mean, std = np.split(moments[start : start + RECORD_EVERY].astype(np.float64), 2, axis=1)
        first = first + mean.sum((0, 2, 3))
        second = second + (mean**2 + std**2).sum((0, 2, 3))
    n = len(moments) * moments.shape[2] * moments.shape[3]
    mean = first / n
    return mean.tolist(), np.sqrt(second / n - mean**2).tolist()


def prepare_latents(
    config: DataConfig,
    folder: Path,
    device: torch.device,
    workers: int,
    report: Callable[[str], Callable[[int, int], None]],
) -> None:
    """Verb ``latents``: encode both splits into ``folder``; latents.json is written last.

    Args:
        workers: processes that decode images beside this one.
        report: from a split's name to what is called as report(images done, images in all).

    Raises:
        UserError: images or autoencoder cannot be read.
    """
    autoencoder = load_autoencoder(config.autoencoder, device)
    weights = weights_digest(autoencoder)
    identity = digest([config.model_dump(mode="json"), weights])
    tables = {split: open_images(config, split) for split in SPLITS}
    names = class_names(tables["train"])
    if class_names(tables["test"]) != names:
        raise UserError(
            f"data.path: train has {len(names)} classes and val {len(class_names(tables['test']))} "
            "that differ; expected the same class folders in both"
        )
    splits = {
        split: _encode_split(
            autoencoder, table, split, folder, f"{identity}/{len(table)}", workers, report(split)
        )
        for split, table in tables.items()
    }
    train = np.load(folder / "train_latents.npy", mmap_mode="r", allow_pickle=False)
    mean, std = statistics(train)
    write_json(
        folder / "latents.json",
        {
            "identity": identity,
            "autoencoder": config.autoencoder,
            "autoencoder_sha256": weights,
            "classes": len(names),
            "mean": mean,
            "std": std,
            "splits": splits,
        },
    )


@dataclass(frozen=True)
class LatentSplit:
    """One split of latents, memory-mapped.

    Attributes:
        moments: float16 [N, 2C, H, W]: mean and deviation of every value.
        labels: int64 [N].
        classes: number of classes.
        space: autoencoder, its digest, mean and std of every channel; ready for JSON.
        sigma_data: deviation that latents are scaled to.
    """

    moments: Tensor
    labels: Tensor
    classes: int
    space: dict[str, Any]
    sigma_data: float

    def clean(self, n: int) -> Tensor:
        """The first n latents, always the same draws, [n, C, H, W]."""
        moments = self.moments[:n].float()
        mean, std = moments.chunk(2, dim=1)
        xi = torch.randn(mean.shape, generator=stream("cpu", "held-out latents"))
        return scaled(mean + std * xi, *channels(self.space, "cpu"), self.sigma_data)


def channels(space: dict[str, Any], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the channels of a space, [C, 1, 1] each."""
    return tuple(torch.tensor(space[key], device=device)[:, None, None] for key in ("mean", "std"))


def scaled(latents: Tensor, mean: Tensor, std: Tensor, sigma_data: float) -> Tensor:
    """Latents as the autoencoder gives them → mean 0 and deviation σ_data in every channel."""
    return (latents - mean) * (sigma_data / std)


def unscaled(y: Tensor, mean: Tensor, std: Tensor, sigma_data: float) -> Tensor:
    """The inverse of :func:`scaled`."""
    return y * (std / sigma_data) + mean


def load_latents(folder: Path, split: str, sigma_data: float) -> LatentSplit:
    """Open one split of encoded latents and check it against its digests.

    Raises:
        UserError: the cache is missing, truncated or altered.
    """
    record = read_json(Path(folder) / "latents.json")
    arrays = {}
    for kind in ("latents", "latent_labels"):
        path = Path(folder) / f"{split}_{kind}.npy"
        if not path.is_file() or sha256(path) != record["splits"][split][f"{kind}_sha256"]:
            raise UserError(
                f"{path} is missing or differs from its digest in latents.json; "
                f"delete {folder}/latents.json and run the same command again"
            )
        arrays[kind] = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    space = {key: record[key] for key in ("autoencoder", "autoencoder_sha256", "mean", "std")}
    return LatentSplit(
        arrays["latents"], arrays["latent_labels"], record["classes"], space, sigma_data
    )
