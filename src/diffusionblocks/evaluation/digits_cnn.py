"""A small CNN for 8×8 grey digits: 64 features for distances, ten classes for accuracy.

Fréchet distances need features that separate what the data separates. Inception never saw
an 8×8 digit, so digits have an extractor of their own, trained by the suite on their
training split and quoted with its accuracy on held-out digits.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images import to_unit
from ..errors import UserError
from ..randomness import stream
from ..tensors import load_tensors, save_tensors

SIDE = 8
CLASSES = 10
FEATURES = 64
EPOCHS = 15
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
#: Largest shift of the augmentation, in pixels; digits fill their 8×8 frame.
SHIFT = 1
#: Images classified at once.
CHUNK = 512


class DigitsCNN(nn.Module):
    """Three convolutions and two linear layers; the features are those between the two.

    The features are standardised over training batches and read before the activation.
    Otherwise some would be constant, dimensions in which nothing is compared, and the scale
    of the others, hence of every distance, would change with the seed.
    """

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (SIDE // 4) ** 2, FEATURES),
            nn.BatchNorm1d(FEATURES, affine=False),
        )
        self.head = nn.Sequential(nn.GELU(), nn.Linear(FEATURES, CLASSES))

    def features(self, images: Tensor) -> Tensor:
        """Images uint8 [N, 1, 8, 8] → features float32 [N, 64]."""
        return self.body(to_unit(images))

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 [N, 1, 8, 8] → logits [N, 10]."""
        return self.head(self.features(images))


def _initialise(network: DigitsCNN, generator: torch.Generator) -> None:
    """He initialisation from a generator; biases start at zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(module.bias)


def shift(images: Tensor, offsets: Tensor) -> Tensor:
    """Shift every image by its own offset; background moves in at the border.

    Args:
        images: uint8 [N, C, H, W].
        offsets: int64 [N, 2], rows and columns to move by, in −SHIFT … SHIFT.

    Returns:
        uint8 [N, C, H, W].
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (SHIFT,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [N, C, rows, columns, H, W]
    row, column = (SHIFT - offsets).unbind(1)
    return windows[torch.arange(len(images)), :, row, column]


@torch.no_grad()
def classify(network: DigitsCNN, images: Tensor) -> Tensor:
    """Predicted class of every image: uint8 [N, 1, 8, 8] → int64 [N]."""
    return torch.cat([network(chunk).argmax(1) for chunk in images.split(CHUNK)])


def train_digits_cnn(
    images: Tensor, labels: Tensor, test_images: Tensor, test_labels: Tensor, seed: int
) -> tuple[dict[str, Tensor], dict]:
    """Train the CNN; the weights are a function of the training images, labels and seed.

    The test split is only measured: nothing is chosen by it.

    Args:
        images: training images uint8 [N, 1, 8, 8].
        labels: their classes, int64 [N] in 0 … 9.
        test_images: held-out images uint8 [M, 1, 8, 8].
        test_labels: their classes, int64 [M].
        seed: decides initial weights, order and shifts.

    Returns:
        The state dict, and a report: accuracies, counts, parameters and settings.

    Raises:
        UserError: the images are not 8×8 and grey.
    """
    if images.shape[1:] != (1, SIDE, SIDE):
        raise UserError(
            f"digits_cnn: found images of shape {list(images.shape[1:])}; expected "
            f"[1, {SIDE}, {SIDE}]: choose another extractor for this data set"
        )
    generator = stream("cpu", seed, "digits_cnn")
    network = DigitsCNN()
    _initialise(network, generator)
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    # Batches of equal size: statistics of a last one of one image would not exist.
    batches = -(-len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS * batches)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images), generator=generator).tensor_split(batches):
            offsets = torch.randint(-SHIFT, SHIFT + 1, (len(index), 2), generator=generator)
            loss = F.cross_entropy(network(shift(images[index], offsets)), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()

    def accuracy(images: Tensor, labels: Tensor) -> float:
        return (classify(network, images) == labels).double().mean().item()

    report = {
        "test_accuracy": accuracy(test_images, test_labels),
        "train_accuracy": accuracy(images, labels),
        "train_samples": len(images),
        "test_samples": len(test_images),
        "parameters": sum(p.numel() for p in network.parameters()),
        "features": FEATURES,
        "epochs": EPOCHS,
        "seed": seed,
    }
    return network.state_dict(), report


def save_digits_cnn(path: Path, state: dict[str, Tensor]) -> None:
    """Write the weights whole, as safetensors."""
    save_tensors(path, state, {})


def load_digits_cnn(path: Path) -> DigitsCNN:
    """Read the CNN, ready to classify.

    Raises:
        UserError: the file is missing, truncated or holds another network.
    """
    network = DigitsCNN()
    try:
        network.load_state_dict(load_tensors(path))
    except RuntimeError:
        raise UserError(
            f"{path} holds other weights than digits_cnn's; "
            "delete it and run the step that trains digits_cnn"
        ) from None
    return network.eval()
