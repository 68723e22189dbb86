"""Feature extractors: the right preprocessing, the right weights, none of them unpickled."""

import io
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffusionblocks.errors import UserError
from diffusionblocks.evaluation import features as registry
from diffusionblocks.evaluation.digits_cnn import DigitsCNN, load_digits_cnn, save_digits_cnn
from diffusionblocks.evaluation.features import (
    EXTRACTORS,
    Inception,
    build_extractor,
    downloaded_inception,
    extractor_identity,
    packaged_efficientnet,
    read_state,
)
from diffusionblocks.evaluation.fidelity import features


@pytest.fixture
def digits_weights(tmp_path):
    """Weights of an untrained digits CNN."""
    path = tmp_path / "digits_cnn.safetensors"
    save_digits_cnn(path, DigitsCNN().state_dict())
    return path


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A state dict of Inception's shapes and random values, and the network that holds it."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Inception, "load_state_dict", lambda self, state: None)
        network = Inception("inception", ["2048"], str(path))
    torch.save(network.state_dict(), path)
    return path, network


def random_images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_unknown_extractor_lists_those_there_are():
    with pytest.raises(UserError, match="inceptoin") as caught:
        features(random_images(1, 3, 8, 8), "inceptoin")
    assert all(name in str(caught.value) for name in EXTRACTORS)


def test_digits_features_are_those_of_the_network(digits_weights):
    images = random_images(21, 1, 8, 8)
    expected = load_digits_cnn(digits_weights).features(images).detach()
    found = features(images, "digits_cnn", digits_weights)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_colour_images_do_not_fit_the_digits_cnn(digits_weights):
    with pytest.raises(UserError, match="3 channels"):
        features(random_images(2, 3, 8, 8), "digits_cnn", digits_weights)


def test_digits_cnn_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match="no weights"):
        features(random_images(2, 1, 8, 8), "digits_cnn")
    with pytest.raises(UserError, match=r"absent\.safetensors does not exist"):
        features(random_images(2, 1, 8, 8), "digits_cnn", tmp_path / "absent.safetensors")


def test_weights_that_are_not_finite_stop_the_scores(digits_weights):
    state = load_file(digits_weights)
    state["body.0.weight"].fill_(torch.nan)
    save_digits_cnn(digits_weights, state)
    with pytest.raises(UserError, match="not finite"):
        features(random_images(2, 1, 8, 8), "digits_cnn", digits_weights)


def test_identity_follows_the_weights(digits_weights):
    before = extractor_identity("digits_cnn", digits_weights)
    assert before.startswith("digits_cnn@sha256:")
    save_digits_cnn(digits_weights, DigitsCNN().state_dict())
    assert extractor_identity("digits_cnn", digits_weights) != before
    assert extractor_identity("efficientnet_lite0").endswith(
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    )


def test_inception_runs_offline_from_a_local_file(inception):
    path, network = inception
    images = random_images(2, 3, 32, 32)
    found = features(images, "inception", path)
    assert found.shape == (2, 2048)
    with torch.no_grad():
        (expected,) = network(images)
    torch.testing.assert_close(found, expected)
    grey = images[:1, :1]
    repeated = features(grey.expand(1, 3, 32, 32), "inception", path)
    assert torch.equal(features(grey, "inception", path), repeated)


def test_inception_weights_of_another_network_are_one_line(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(UserError, match="other tensors than Inception") as caught:
        build_extractor("inception", path, "cpu")
    assert "\n" not in str(caught.value)


def test_inception_is_downloaded_once_and_checked(inception, tmp_path, monkeypatch):
    path, _ = inception
    digest = extractor_identity("inception", path).split(":")[1]
    good = tmp_path / f"weights-{digest[:8]}.pth"
    good.write_bytes(path.read_bytes())
    bad = tmp_path / "weights-00000000.pth"
    bad.write_bytes(path.read_bytes())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(registry, "URL_INCEPTION_V3", bad.as_uri())
    with pytest.raises(UserError, match="invalid hash value"):
        downloaded_inception()
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())
    monkeypatch.setattr(registry, "URL_INCEPTION_V3", good.as_uri())
    fetched = downloaded_inception()
    good.unlink()
    assert downloaded_inception() == fetched
    assert fetched.read_bytes() == path.read_bytes()


class _Payload:
    """Unpickling this would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_no_code_in_a_weights_file_is_run(tmp_path):
    trap = tmp_path / "trap"
    weights = tmp_path / "weights.pth"
    torch.save({"fc.weight": _Payload(str(trap))}, weights)
    with pytest.raises(UserError, match="not a PyTorch state dict"):
        build_extractor("inception", weights, "cpu")
    weights.write_bytes(pickle.dumps(_Payload(str(trap)), protocol=2))
    with pytest.raises(UserError, match="not a PyTorch state dict"):
        build_extractor("efficientnet_lite0", weights, "cpu")
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"not weights", None])
def test_broken_state_dicts_are_one_clear_line(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content is None:
        torch.save({"a": torch.zeros(1000)}, path)
        content = path.read_bytes()[:500]
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a PyTorch state dict") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)


def test_state_dicts_hold_tensors_only(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_state(tmp_path / "absent.pth")
    torch.save({"epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="something else"):
        read_state(tmp_path / "weights.pth")


def test_efficientnet_refuses_tensors_out_of_order(tmp_path):
    state = torch.load(packaged_efficientnet(), weights_only=True)
    names = list(state)
    # Weight and bias of one normalisation have the same shape: only the names tell.
    names[1], names[2] = names[2], names[1]
    torch.save({name: state[name] for name in names}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="not efficientnet_lite0's"):
        build_extractor("efficientnet_lite0", tmp_path / "weights.pth", "cpu")


def cifar10_rows(folder, split: str, count: int) -> tuple[Tensor, np.ndarray]:
    """The first rows of one parquet file, without decoding the rest."""
    from PIL import Image
    from pyarrow.parquet import ParquetFile

    table = next(ParquetFile(folder / f"{split}.parquet").iter_batches(count)).to_pydict()
    decoded = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["img"]]
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2), np.asarray(table["label"])


def test_efficientnet_features_tell_real_classes_apart(cifar10):
    from sklearn.neighbors import KNeighborsClassifier

    train_images, train_labels = cifar10_rows(cifar10, "train", 160)
    test_images, test_labels = cifar10_rows(cifar10, "test", 80)
    train, test = (features(x, "efficientnet_lite0") for x in (train_images, test_images))
    assert train.shape == (160, 1280)
    accuracy = KNeighborsClassifier(5).fit(train, train_labels).score(test, test_labels)
    assert accuracy > 0.3  # chance is 0.1


def test_efficientnet_sees_images_scaled_as_in_its_training(cifar10):
    images, _ = cifar10_rows(cifar10, "train", 24)
    network = build_extractor("efficientnet_lite0", None, "cpu")
    seen = {}
    norm = network.network.bn1
    norm.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    grey = images[:2, :1]
    network(images)
    distance = (seen["x"].mean((0, 2, 3)) - norm.running_mean).square() / (
        norm.running_var + norm.eps
    )
    # 0.1 with ImageNet's usual mean and deviation, 0.006 with the right ones.
    assert distance.mean() < 0.03
    repeated = features(grey.expand(2, 3, 32, 32), "efficientnet_lite0")
    assert torch.equal(features(grey, "efficientnet_lite0"), repeated)
