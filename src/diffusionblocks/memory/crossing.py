"""Up to which batch blocks without checkpointing need less than the whole network with it."""

from typing import Any

from .budget import largest
from .formula import DepthLaw
from .point import Point, with_training

#: Where to look first, and where to stop looking.
BATCHES = (1, 8, 32, 128, 512, 4096)


def crossing(layers: int, depth: int, plain: DepthLaw, checkpointed: DepthLaw) -> int | None:
    """Largest batch at which a block alone needs no more than the checkpointed network.

    Args:
        layers: of the network.
        depth: of the block.
        plain: law without checkpointing.
        checkpointed: law with it.

    Returns:
        0 where the block always needs more, None where it needs no more at any of BATCHES.
    """

    def excess(batch: int) -> int:
        return plain.peak(depth, batch) - checkpointed.peak(layers, batch)

    seen = {batch: excess(batch) for batch in BATCHES}
    if max(seen.values()) <= 0:
        return None
    return largest(excess, 0, BATCHES[1], seen)[0]


def crossing_rows(points: list[Point]) -> list[dict[str, Any]]:
    """The crossing batch of every block-wise point, and the bytes that both need there."""
    laws: dict[str, tuple[DepthLaw, DepthLaw]] = {}
    rows = []
    for point in points:
        plain = with_training(point, activation_checkpointing=False)
        settings = plain.run.training.model_dump_json()
        if settings not in laws:
            kept = with_training(point, activation_checkpointing=True)
            laws[settings] = DepthLaw(plain), DepthLaw(kept)
        law = laws[settings]
        batch = crossing(point.run.network.layers, point.part.depth, *law)
        peak = law[0].peak(point.part.depth, batch) if batch else None
        columns = plain.columns()
        del columns["batch_size"], columns["checkpointing"]
        rows.append(columns | {"crossing_batch": batch, "crossing_bytes": peak})
    return rows
