"""Data: decoded once, checked by digest, one interface for every set."""

import numpy as np
import pytest
import torch

from diffusionblocks.config import DataConfig
from diffusionblocks.data.images import load_split, prepare_images, to_uint8, to_unit
from diffusionblocks.errors import UserError


def test_digits_are_the_packages_digits(digits):
    from sklearn.datasets import load_digits

    train, test = load_split(digits, "train"), load_split(digits, "test")
    assert train.images.shape == (1200, 1, 8, 8) and test.images.shape == (597, 1, 8, 8)
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.int64
    bunch = load_digits()
    ours = torch.cat([train.images, test.images]).double().sum(0)[0].numpy()
    assert np.allclose(ours, (bunch.images * 255 / 16).sum(0), rtol=0.01)
    labels = torch.cat([train.labels, test.labels])
    assert labels.bincount().tolist() == np.bincount(bunch.target).tolist()
    # No image is in both splits, but for the few that the set itself holds twice.
    both = {i.numpy().tobytes() for i in train.images} & {i.numpy().tobytes() for i in test.images}
    assert len(both) <= 1
    assert len({train.digest, test.digest}) == 2


def test_preparing_twice_gives_the_same_bits(digits, tmp_path):
    again = prepare_images(DataConfig(name="digits"), tmp_path)
    from diffusionblocks.files import read_json

    assert again == read_json(digits / "dataset.json")


def test_units_invert_on_every_byte():
    every = torch.arange(256, dtype=torch.uint8)
    unit = to_unit(every)
    assert unit[0] == -1 and unit[-1] == 1
    assert torch.equal(to_uint8(unit), every)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_cache_is_refused(tmp_path, damage):
    prepare_images(DataConfig(name="digits"), tmp_path)
    file = tmp_path / "train_images.npy"
    whole = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(whole[:-9] if damage == "truncate" else whole[:-1] + b"\x07")
    with pytest.raises(UserError, match="differs from its digest"):
        load_split(tmp_path, "train")
    assert len(load_split(tmp_path, "test").labels) == 597


def test_cifar10_parquet_is_decoded(cifar10, tmp_path):
    """A few hundred real rows, through the same loader."""
    import pyarrow.parquet as pq

    for split in ("train", "test"):
        rows = pq.read_table(cifar10 / f"{split}.parquet").slice(0, 200)
        pq.write_table(rows, tmp_path / f"{split}.parquet")
    description = prepare_images(DataConfig(name="cifar10", path=tmp_path), tmp_path / "out")
    assert description["channels"] == 3 and description["image_size"] == 32
    assert description["classes"] == 10 and "airplane" in description["class_names"]
    split = load_split(tmp_path / "out", "test")
    assert split.images.shape == (200, 3, 32, 32)
    assert 60 < split.images.float().mean() < 180
    assert set(split.labels.tolist()) <= set(range(10))


def test_missing_parquet_is_named(tmp_path):
    with pytest.raises(UserError, match="train.parquet does not exist.*correct data.path"):
        prepare_images(DataConfig(name="cifar10", path=tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truncated_parquet_is_named(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="cannot read .*train.parquet") as caught:
        prepare_images(DataConfig(name="cifar10", path=tmp_path), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_parquet_of_something_else_is_named(tmp_path):
    import pandas as pd

    for split in ("train", "test"):
        pd.DataFrame({"text": ["a"]}).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(UserError, match="expected img and label"):
        prepare_images(DataConfig(name="cifar10", path=tmp_path), tmp_path / "out")
