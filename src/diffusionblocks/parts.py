"""What each training job of a run trains (plain Python: no job is needed to ask)."""

from dataclasses import dataclass

from .config import RunConfig
from .errors import UserError


@dataclass(frozen=True)
class Part:
    """A training job's share of a run.

    Attributes:
        name: ``block0`` …, or ``all``.
        blocks: the blocks that it trains.
        layers: for every one of those blocks, which of this job's own layers to run.
        depth: how many layers this job builds.
    """

    name: str
    blocks: list[int]
    layers: dict[int, range | None]
    depth: int


def part_of(run: RunConfig, name: str) -> Part:
    """The share of a run that a job of that name trains.

    Raises:
        UserError: the run has no such part.
    """
    if name not in run.parts:
        raise UserError(f"run {run.name} has no part {name!r}; expected one of {run.parts}")
    ranges = run.layer_ranges()
    if name == "all":
        return Part(name, list(range(run.blocks)), dict(enumerate(ranges)), run.network.layers)
    block = int(name.removeprefix("block"))
    return Part(name, [block], {block: None}, len(ranges[block]))
