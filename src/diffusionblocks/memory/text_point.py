"""A training step of a language model to plan: sizes in, points out. Plain Python, like ``point``.

End to end is the plain next-token model; a block is in the denoising form, which sees a sequence
twice, clean and noisy. So the two differ in more than depth, and peak(B)/peak(1) is not 1/B even
where a block's own memory is proportional to its layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ..config import (
    GPTConfig,
    MemoryText,
    NoiseConfig,
    TextDataConfig,
    TextRun,
    TokenizerConfig,
    TrainingConfig,
    validated,
)
from ..parts import Part, part_of
from .point import FEW_BLOCKS, divisors


@dataclass(frozen=True)
class TextPoint:
    """A training step of a language run, and what its tokeniser would tell.

    Attributes:
        vocabulary: number of tokens.
    """

    run: TextRun
    vocabulary: int
    part: Part = field(init=False, compare=False)

    def __post_init__(self):
        parts = [part_of(self.run, name) for name in self.run.parts]
        object.__setattr__(self, "part", max(parts, key=lambda part: part.depth))

    @property
    def neighbours(self) -> list[int]:
        """No other block is on the device."""
        return []

    def columns(self) -> dict[str, Any]:
        """The columns that name this point in the table."""
        run, training = self.run, self.run.training
        return {
            "layers": run.network.layers,
            "width": run.network.width,
            "heads": run.network.heads,
            "context_length": run.network.context_length,
            "vocabulary": self.vocabulary,
            "method": run.method,
            "blocks": run.blocks,
            "batch_size": training.batch_size,
            "precision": training.precision,
            "checkpointing": training.activation_checkpointing,
        }


def text_point(
    network: GPTConfig, vocabulary: int, blocks: int, embedding: str | None, **training: Any
) -> TextPoint:
    """The plain network (one block), or the deepest of its denoising blocks.

    Raises:
        UserError: a size is impossible.
    """
    source = "memory of a language model"
    # What a step's memory does not depend on, but a training configuration must have.
    needless = {"iterations": 1, "learning_rate": 1e-3, "ema_halflife_samples": 1000}
    values = {
        "task": "language",
        "data": TextDataConfig(name="pydoc_topics"),  # never read
        "tokenizer": TokenizerConfig(),
        "network": network,
        "noise": NoiseConfig(),
        "training": validated(TrainingConfig, needless | training, source),
        "compute": {},
        "method": "end_to_end" if blocks == 1 else "blockwise_independent",
        "blocks": blocks,
        "partition": None if blocks == 1 else "equal_mass",
        "overlap": 0.0,
        "layers_per_block": None,
        "embedding": None if blocks == 1 else embedding,
        "seed": 0,
    }
    return TextPoint(validated(TextRun, values, source), vocabulary)


def text_points(text: MemoryText) -> Iterator[TextPoint]:
    """Every point of a preset's language memory table."""
    numbers = divisors(text.network.layers, FEW_BLOCKS)
    lists = (text.batch_sizes, text.precisions, text.checkpointing, numbers)
    for batch, precision, kept, B in product(*lists):
        training = {"batch_size": batch, "precision": precision, "activation_checkpointing": kept}
        yield text_point(text.network, text.vocabulary, B, "frozen", **training)
