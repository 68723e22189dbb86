"""The memory formula, C + 4P·(layers held) + A·(layers run), and its three constants.

P: bytes of a layer's parameters. Four such copies are alive when activations are at their
highest: weights, AdamW's two moments, the moving average (gradients come after, as activations
go). A: activations that a layer leaves for the backward pass. C: what does not shrink with
depth: input, conditioning and output layers, and the working set of the one layer at work.
(Method notes, "Memory, exactly".)
"""

from dataclasses import dataclass

from .plan import plan
from .point import Point, from_sizes

#: Copies of the parameters at the peak: weights, two moments, moving average.
COPIES = 4


@dataclass(frozen=True)
class Formula:
    """Constants of one network, batch, precision and way of checkpointing; all in bytes.

    Attributes:
        layer_parameters: P.
        layer_activations: A.
        fixed: C.
        ends: parameters of the input, conditioning and output layers (4 copies are in C).
    """

    layer_parameters: int
    layer_activations: int
    fixed: int
    ends: int

    def peak(self, point: Point) -> int:
        """What the formula predicts for a point that these constants belong to."""
        part = point.part
        run = max(len(part.layers[b] or range(part.depth)) for b in part.blocks)
        held = COPIES * part.depth
        if point.run.training.optimizer_state == "offloaded" and len(part.blocks) > 1:
            held -= 2 * (part.depth - run)  # the moments of layers that do not run
        neighbours = sum(self.layer_parameters * d + self.ends for d in point.neighbours)
        return (
            self.fixed
            + held * self.layer_parameters
            + run * self.layer_activations
            + COPIES * neighbours
        )


def of_depth(point: Point, depth: int, batch_size: int | None = None) -> Point:
    """The end-to-end network of that many layers with a point's settings, maybe another batch."""
    training = point.run.training.model_dump()
    return from_sizes(
        point.model,
        point.run.network.model_dump() | {"layers": depth},
        point.images,
        **training | {"batch_size": batch_size or training["batch_size"]},
    )


def formula(point: Point) -> Formula:
    """The constants of a point's network, from plans of one and of two of its layers."""
    one, two = (plan(of_depth(point, depth)) for depth in (1, 2))
    layer = two.labels["parameters"] - one.labels["parameters"]
    activations = two.labels["activations"] - one.labels["activations"]
    return Formula(
        layer_parameters=layer,
        layer_activations=activations,
        fixed=one.peak - COPIES * layer - activations,
        ends=one.labels["parameters"] - layer,
    )


class DepthLaw:
    """Foretells the peak of a block alone from plans of one and two layers.

    A peak is affine in depth as long as the same moment of the step is the highest; all that
    these numbers guide is proved by plans of the depth itself.

    Args:
        point: any way to train with the settings in question.
    """

    def __init__(self, point: Point):
        self._point = point
        self._batch = point.run.training.batch_size
        self._peaks: dict[int, tuple[int, int]] = {}

    def peak(self, depth: int, batch_size: int) -> int:
        """Bytes of that many layers at a batch."""
        if batch_size not in self._peaks:
            one, two = (plan(of_depth(self._point, d, batch_size)).peak for d in (1, 2))
            self._peaks[batch_size] = one, two
        one, two = self._peaks[batch_size]
        return one + (two - one) * (depth - 1)

    def batch(self, depth: int, budget: int) -> int:
        """About the batch at which that many layers fill a budget in bytes."""
        first = self.peak(depth, self._batch)
        slope = (self.peak(depth, 2 * self._batch) - first) / self._batch
        return int(self._batch + (budget - first) // slope)
