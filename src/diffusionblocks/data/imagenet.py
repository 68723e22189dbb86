"""ImageNet at 256×256: from a local folder of images or the hub, both through ``datasets``."""

import tempfile
from typing import Any

import numpy as np

from ..config import DataConfig
from ..errors import UserError

HUB = "ILSVRC/imagenet-1k"
SIDE = 256
#: Our split → the hub's name of it, and the local folder's.
HUB_SPLITS = {"train": "train", "test": "validation"}
FOLDERS = {"train": "train", "test": "val"}


def open_images(config: DataConfig, split: str) -> Any:
    """A split as a `datasets` table with columns image and label; nothing is decoded yet.

    Raises:
        UserError: the folder or the hub's copy cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    if config.path is None:
        source = f"{HUB} at {config.revision}"
        arguments = {"path": HUB, "split": HUB_SPLITS[split], "revision": config.revision}
    else:
        source = config.path / FOLDERS[split]
        if not source.is_dir():
            raise UserError(
                f"data.path: {source} does not exist; expected train and val in {config.path}, "
                "each with a folder of images a class: correct data.path"
            )
        arguments = {"path": "imagefolder", "data_dir": str(source), "split": "train"}
    try:
        table = datasets.load_dataset(**arguments)
    except Exception as error:  # `datasets` raises many kinds for one broken source
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(
            f"cannot read {source} ({reason}); fetch it again or set data.path"
        ) from None
    if not {"image", "label"} <= set(table.column_names):
        raise UserError(
            f"{source} has columns {table.column_names}; expected image and label: put the images "
            "of every class into a folder of their own"
        )
    return table


def class_names(table: Any) -> list[str]:
    """Names of the classes, in the order of their numbers."""
    return list(table.features["label"].names)


def centre(image: Any) -> np.ndarray:
    """A PIL image scaled until its shorter side has 256 pixels, its middle cut out.

    Returns:
        uint8 [3, 256, 256].
    """
    from PIL import Image

    image = image.convert("RGB")
    width, height = image.size
    scale = SIDE / min(width, height)
    size = max(SIDE, round(width * scale)), max(SIDE, round(height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = ((edge - SIDE) // 2 for edge in size)
    pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def spread(count: int, wanted: int) -> np.ndarray:
    """Numbers of ``wanted`` of ``count`` images, evenly spaced, since sets are sorted by class."""
    return np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64)


def load_pixels(config: DataConfig, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The images of a split that samples are scored against.

    Returns:
        uint8 [N, 3, 256, 256] in a file without a name, since the published count takes 10 GB;
        labels int64 [N]; names of the classes.
    """
    table = open_images(config, split)
    chosen = spread(len(table), config.scored_images)
    shape = (len(chosen), 3, SIDE, SIDE)
    # The mapping keeps the file after it is closed; it vanishes with the array.
    with tempfile.TemporaryFile() as file:
        images = np.memmap(file, np.uint8, "w+", shape=shape)
    labels = np.empty(len(chosen), np.int64)
    for place, number in enumerate(chosen.tolist()):
        row = table[number]
        images[place], labels[place] = centre(row["image"]), row["label"]
    return images, labels, class_names(table)
