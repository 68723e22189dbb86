"""What fits a budget: the largest batch of every B, the smallest B of a batch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .formula import DepthLaw
from .plan import plan
from .point import Point, with_training
from .table import size_text


@dataclass(frozen=True)
class Answer:
    """What one way to train can do within a budget.

    Attributes:
        point: the way to train; its batch is the one that was asked for.
        largest_batch: 0 where not even the smallest batch fits.
        peak: bytes at the largest batch, or at the smallest where that does not fit.
    """

    point: Point
    largest_batch: int
    peak: int

    @property
    def fits(self) -> bool:
        """Whether the batch that was asked for fits."""
        return self.point.run.training.batch_size <= self.largest_batch


def largest(
    peak: Callable[[int], int], budget: int, guess: int, seen: dict[int, int] | None = None
) -> tuple[int, int]:
    """Largest count whose peak is within a budget, and that peak; its successor's was looked at.

    Args:
        peak: bytes at a count from 1, rising with it.
        guess: where to look first; a right guess costs two looks.
        seen: peaks that are known already.

    Returns:
        (count, bytes); count 0, and the bytes of count 1, where that does not fit.
    """
    seen = dict(seen or {})

    def fits(count: int) -> bool:
        if count not in seen:
            seen[count] = peak(count)
        return seen[count] <= budget

    low = max((count for count in seen if fits(count)), default=0)
    high = min((count for count in seen if not fits(count)), default=None)
    if high is None or low == 0:
        low, high = _bracket(fits, max(1, guess))
    looks = 0
    while high - low > 1:
        # Peaks are affine within a phase of the step, so a line mostly lands on the answer and
        # then on its successor; halving now and then keeps a bend from making that slow.
        looks += 1
        middle = (low + high) // 2
        if low and looks % 3:
            line = (budget - seen[low]) * (high - low) // (seen[high] - seen[low])
            middle = min(max(low + line, low + 1), high - 1)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, seen[max(low, 1)]


def _bracket(fits: Callable[[int], bool], start: int) -> tuple[int, int]:
    """A count that fits (or 0) and one that does not, by ever longer strides from a start."""
    low = high = start
    stride = 1
    while fits(high):
        low, high, stride = high, high + stride, 2 * stride
    while low and not fits(low):
        low, high, stride = max(low - stride, min(1, low - 1)), low, 2 * stride
    return low, high


def answer(point: Point, budget: int, law: DepthLaw) -> Answer:
    """What a way to train can do within a budget in bytes; batches are whole microbatches."""
    unit = point.run.training.accumulation

    def peak(count: int) -> int:
        return plan(with_training(point, batch_size=count * unit)).peak

    first = law.batch(point.part.depth, budget) // unit
    count, found = largest(peak, budget, first)
    return Answer(point, count * unit, found)


def answers(points: Iterable[Point], budget: int) -> list[Answer]:
    """What every way to train can do within a budget in bytes.

    Raises:
        UserError: not one of them fits, whatever the batch.
    """
    laws: dict[str, DepthLaw] = {}
    found = []
    for point in points:
        settings = point.run.training.model_dump_json()
        if settings not in laws:
            laws[settings] = DepthLaw(point)
        found.append(answer(point, budget, laws[settings]))
    least = min(found, key=lambda a: a.peak)
    if least.largest_batch == 0:
        raise UserError(
            f"a budget of {size_text(budget)} is below the fixed cost: {describe(least.point)} "
            f"needs {size_text(least.peak)} at the smallest batch, "
            f"{size_text(least.peak - budget)} are missing; raise --budget, add --blocks or "
            "choose a smaller network"
        )
    return found


def describe(point: Point) -> str:
    """B and checkpointing in words."""
    checkpointing = "with" if point.run.training.activation_checkpointing else "without"
    return f"B = {point.run.blocks} {checkpointing} checkpointing"


def verdicts(found: list[Answer], budget: int) -> list[str]:
    """Sentences: the smallest B that fits the batch, with and without checkpointing."""
    sentences = []
    for training in dict.fromkeys(a.point.run.training.model_dump_json() for a in found):
        group = [a for a in found if a.point.run.training.model_dump_json() == training]
        settings = group[0].point.run.training
        word = "with" if settings.activation_checkpointing else "without"
        what = f"batch {settings.batch_size} in {settings.precision} {word} checkpointing"
        fitting = [a for a in group if a.fits]
        if fitting:
            best = min(fitting, key=lambda a: a.point.run.blocks)
            sentences.append(
                f"{what}: B = {best.point.run.blocks} is the smallest that fits "
                f"{size_text(budget)}; its largest batch is {best.largest_batch}"
            )
            continue
        least = min((plan(a.point).peak, a.point.run.blocks) for a in group)
        sentences.append(
            f"{what}: does not fit {size_text(budget)}; the least, B = {least[1]}, needs "
            f"{size_text(least[0])}: {size_text(least[0] - budget)} are missing"
        )
    return sentences


def rows(found: list[Answer], budget: int) -> list[dict[str, Any]]:
    """One row a way to train, for CSV and JSON."""
    return [
        {
            **a.point.columns(),
            "budget_bytes": budget,
            "fits": a.fits,
            "largest_batch": a.largest_batch,
            "largest_batch_bytes": a.peak,
        }
        for a in found
    ]
