"""One point of a memory table: everything that decides how many bytes a training step takes.

A point is a :class:`~diffusionblocks.config.RunConfig` (network, method, blocks, batch, precision,
checkpointing, optimiser) plus what a data set would tell (size, channels, classes of its images)
and whether other blocks share the device. Plain Python: points are listed before PyTorch starts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ..config import (
    DataConfig,
    MemorySweep,
    NetworkConfig,
    NoiseConfig,
    Preset,
    RunConfig,
    TrainingConfig,
    validated,
)
from ..errors import UserError
from ..parts import Part, part_of

METHODS = ("end_to_end", "blockwise_independent", "blockwise_interleaved")
RESIDENT = ("own", "all")

#: layers, width and heads of the DiT sizes (Peebles & Xie 2023, Table 1); the patch is the suffix.
DIT_SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
DIT_PATCHES = (2, 4, 8)
#: Blocks to try when none are named: divisors of the depth up to here.
FEW_BLOCKS = 6
#: What DiT is trained on: latents of 256×256 ImageNet images.
LATENT = (32, 4, 1000)


@dataclass(frozen=True)
class Images:
    """What a data set tells the network: side in pixels, channels, classes."""

    image_size: int
    channels: int
    classes: int


#: What networks see of every data set that a preset can name.
DATA_IMAGES = {
    "digits": Images(8, 1, 10),
    "cifar10": Images(32, 3, 10),
    "imagenet256": Images(*LATENT),
}


@dataclass(frozen=True)
class Point:
    """A training step to plan or to measure.

    Attributes:
        model: what the network is called in tables.
        run: network, method, blocks and training settings.
        images: what the data set would tell.
        resident: ``own``: a job of independent blocks holds the block it trains;
            ``all``: the other blocks' weights, averages and optimiser state stay on the device.
    """

    model: str
    run: RunConfig
    images: Images
    resident: str = "own"
    part: Part = field(init=False, compare=False)

    def __post_init__(self):
        parts = [part_of(self.run, name) for name in self.run.parts]
        # Blocks of uneven depth need different memory; the deepest decides what fits.
        object.__setattr__(self, "part", max(parts, key=lambda part: part.depth))

    @property
    def neighbours(self) -> list[int]:
        """Depths of the other blocks that stay on the device."""
        if self.resident == "own" or self.run.method != "blockwise_independent":
            return []
        depths = sorted(len(layers) for layers in self.run.layer_ranges())
        return depths[:-1]

    @property
    def title(self) -> str:
        """What to call this point in a message."""
        run = self.run
        return f"{self.model}, {run.method}, B = {run.blocks}, batch {run.training.batch_size}"

    def columns(self) -> dict[str, Any]:
        """The columns that name this point in every memory table."""
        run, training = self.run, self.run.training
        return {
            "model": self.model,
            "layers": run.network.layers,
            "width": run.network.width,
            "heads": run.network.heads,
            "patch": run.network.patch,
            "image_size": self.images.image_size,
            "channels": self.images.channels,
            "classes": self.images.classes,
            "method": run.method,
            "blocks": run.blocks,
            "layers_per_block": "-".join(str(len(r)) for r in run.layer_ranges()),
            "batch_size": training.batch_size,
            "accumulation": training.accumulation,
            "precision": training.precision,
            "checkpointing": training.activation_checkpointing,
            "optimizer": training.optimizer,
            "optimizer_state": training.optimizer_state,
            "resident": self.resident,
        }


def method_of(method: str, blocks: int) -> str:
    """One block is end to end, whichever block-wise method a sweep is about."""
    return "end_to_end" if blocks == 1 and method in METHODS else method


def grid(make: Callable[..., Point], **lists: Sequence[Any]) -> list[Point]:
    """Every combination of the lists' values as a point, without duplicates.

    Args:
        make: from one value of every list, by name, to a point.
    """
    points = [make(**dict(zip(lists, values, strict=True))) for values in product(*lists.values())]
    return list({tuple(point.columns().values()): point for point in points}.values())


def dit(name: str) -> NetworkConfig:
    """Sizes of a DiT by name, for instance DiT-L/2.

    Raises:
        UserError: there is no such size or patch.
    """
    size, _, patch = name.removeprefix("DiT-").partition("/")
    if not name.startswith("DiT-") or size not in DIT_SIZES or patch not in map(str, DIT_PATCHES):
        raise UserError(
            f"unknown model {name!r}; expected DiT-S/2, DiT-B/4, DiT-L/2, DiT-XL/2 or the like, "
            "or give --layers, --width and --heads"
        )
    layers, width, heads = DIT_SIZES[size]
    return NetworkConfig(layers=layers, width=width, heads=heads, patch=int(patch))


def from_sizes(
    model: str,
    network: dict[str, Any],
    images: Images,
    method: str = "blockwise_independent",
    blocks: int = 1,
    resident: str = "own",
    layers_per_block: tuple[int, ...] | None = None,
    **training: Any,
) -> Point:
    """A point from plain sizes.

    Args:
        model: what to call it.
        network: layers, width, heads, patch, mlp_ratio.
        training: batch_size, precision, activation_checkpointing, optimizer, optimizer_state, …

    Raises:
        UserError: a size is impossible, a name unknown.
    """
    source = f"memory of {model}"
    for name in ("image_size", "channels", "classes"):
        if getattr(images, name) < 1:
            raise UserError(f"{source}: found {name} {getattr(images, name)}; expected at least 1")
    sizes = validated(NetworkConfig, network, source)
    if images.image_size % sizes.patch:
        raise UserError(
            f"{source}: patch {sizes.patch} does not divide the {images.image_size} pixels of the "
            "image; change the patch or the image size"
        )
    if resident not in RESIDENT:
        raise UserError(f"{source}: found resident {resident!r}; expected one of {RESIDENT}")
    method = method_of(method, blocks)
    # What only one method knows has one value in the others, so that equal points are equal.
    if method != "blockwise_independent":
        resident = "own"
    if method != "blockwise_interleaved":
        training = training | {"optimizer_state": "resident"}
    # What a step's memory does not depend on, but a training configuration must have.
    needless = {"iterations": 1, "learning_rate": 1e-3, "ema_halflife_samples": 1000}
    settings = validated(TrainingConfig, needless | training, source)
    run = validated(
        RunConfig,
        {
            "task": "images",
            "data": DataConfig(name="digits"),  # never read: the images' sizes are given
            "network": sizes,
            "noise": NoiseConfig(),
            "training": settings,
            "compute": {},
            "method": method,
            "blocks": blocks,
            "partition": None if blocks == 1 else "equal_mass",
            "overlap": 0.0,
            "layers_per_block": layers_per_block,
            "seed": 0,
        },
        source,
    )
    return Point(model, run, images, resident)


def divisors(layers: int, largest: int) -> list[int]:
    """The numbers of equal blocks that a depth divides into."""
    return [B for B in range(1, min(layers, largest) + 1) if layers % B == 0]


def from_preset(preset: Preset, name: str, **changes: Any) -> Point:
    """A point of a preset's network with its training settings, some of them changed."""
    training = preset.training.model_dump() | {
        key: changes.pop(key) for key in list(changes) if key in TrainingConfig.model_fields
    }
    return from_sizes(
        name, preset.network.model_dump(), DATA_IMAGES[preset.data.name], **changes, **training
    )


def from_sweep(preset: Preset, name: str, sweep: MemorySweep) -> list[Point]:
    """Every point of one of a preset's memory sweeps.

    Raises:
        UserError: the sweep names an unknown model or impossible blocks.
    """
    if sweep.model:
        model, images = sweep.model, Images(*LATENT)
        network = dit(sweep.model).model_dump()
        training = {}
    else:
        model, images = name, DATA_IMAGES[preset.data.name]
        network, training = preset.network.model_dump(), preset.training.model_dump()

    def make(**values: Any) -> Point:
        return from_sizes(model, network, images, **training | values)

    return grid(
        make,
        batch_size=sweep.batch_sizes or (preset.training.batch_size,),
        precision=sweep.precisions,
        activation_checkpointing=sweep.checkpointing,
        optimizer_state=sweep.optimizer_states,
        resident=sweep.residents,
        method=sweep.methods,
        blocks=sweep.blocks or divisors(network["layers"], FEW_BLOCKS),
    )


def with_training(point: Point, **changes: Any) -> Point:
    """The same point with other training settings."""
    training = point.run.training.model_dump() | changes
    return from_sizes(
        point.model,
        point.run.network.model_dump(),
        point.images,
        point.run.method,
        point.run.blocks,
        point.resident,
        point.run.layers_per_block,
        **training,
    )
