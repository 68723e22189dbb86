"""The digits CNN: accurate, a function of its seed, whole on disk."""

import pytest
import torch

from diffusionblocks.data.images import load_split
from diffusionblocks.errors import UserError
from diffusionblocks.evaluation import digits_cnn
from diffusionblocks.evaluation.digits_cnn import (
    CHUNK,
    DigitsCNN,
    classify,
    load_digits_cnn,
    save_digits_cnn,
    shift,
    train_digits_cnn,
)


@pytest.fixture(scope="module")
def splits(digits):
    return load_split(digits, "train"), load_split(digits, "test")


def train(splits, seed):
    training, test = splits
    return train_digits_cnn(training.images, training.labels, test.images, test.labels, seed)


@pytest.fixture(scope="module")
def trained(splits):
    """State dict and report of one whole training."""
    torch.set_num_threads(1)
    return train(splits, seed=0)


def test_it_recognises_held_out_digits_after_a_round_trip(splits, trained, tmp_path):
    state, report = trained
    save_digits_cnn(tmp_path / "cnn.safetensors", state)
    network = load_digits_cnn(tmp_path / "cnn.safetensors")
    test = splits[1]
    accuracy = (classify(network, test.images) == test.labels).double().mean().item()
    assert accuracy == report["test_accuracy"] >= 0.97
    assert report["parameters"] == sum(p.numel() for p in network.parameters())


def test_features_are_standardised_and_none_is_constant(splits, trained):
    network = DigitsCNN()
    network.load_state_dict(trained[0])
    with torch.no_grad():
        features = network.eval().features(splits[0].images)
    assert features.shape == (1200, 64)
    deviations = features.std(0)
    assert deviations.min() > 0.5 and deviations.max() < 2


def test_weights_are_a_function_of_the_seed(splits, monkeypatch):
    monkeypatch.setattr(digits_cnn, "EPOCHS", 1)
    first, _ = train(splits, seed=1)
    torch.rand(3)  # the global generator must play no part
    again, _ = train(splits, seed=1)
    other, _ = train(splits, seed=2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.1.weight"], other["head.1.weight"])


def test_the_test_split_is_only_measured(splits, monkeypatch):
    monkeypatch.setattr(digits_cnn, "EPOCHS", 1)
    training, test = splits
    one, _ = train(splits, seed=1)
    other, _ = train_digits_cnn(
        training.images, training.labels, test.images[:5], test.labels[:5], seed=1
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_last_batch_of_one_image_is_avoided(splits, monkeypatch):
    monkeypatch.setattr(digits_cnn, "EPOCHS", 1)
    training, test = splits
    state, _ = train_digits_cnn(
        training.images[:65], training.labels[:65], test.images, test.labels, seed=0
    )
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_shift_moves_every_image_by_its_own_offset():
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 3, 4] = 255
    moved = shift(images, torch.tensor([[1, 0], [-1, 1]]))
    assert moved[0].nonzero().tolist() == [[0, 4, 4]]
    assert moved[1].nonzero().tolist() == [[0, 2, 5]]


def test_classify_does_not_depend_on_chunks(splits, trained):
    network = DigitsCNN()
    network.load_state_dict(trained[0])
    network.eval()
    images = splits[0].images[: CHUNK + 3]
    assert torch.equal(classify(network, images)[-5:], classify(network, images[-5:]))


def test_other_images_are_refused(splits):
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(UserError, match="another extractor"):
        train_digits_cnn(images, labels, images, labels, 0)


def test_broken_weights_are_one_clear_line(tmp_path):
    path = tmp_path / "cnn.safetensors"
    with pytest.raises(UserError, match="does not exist"):
        load_digits_cnn(path)
    state = DigitsCNN().state_dict()
    save_digits_cnn(path, state)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="not a whole"):
        load_digits_cnn(path)
    save_digits_cnn(path, {"something": torch.zeros(2)})
    with pytest.raises(UserError, match="other weights") as caught:
        load_digits_cnn(path)
    assert "\n" not in str(caught.value)
