"""Which consecutive layers make up which block (plain Python: the workflow asks before any job)."""


def split_layers(layers: int, B: int, layers_per_block: list[int] | None = None) -> list[range]:
    """Consecutive layers for every block: equal shares, or the sizes given (paper, Table 7).

    Args:
        layers: L, the depth of the network.
        layers_per_block: for instance [3, 6, 3]; block 0, the highest noise, comes first.

    Returns:
        B ranges of layer indices that cover 0 … L − 1 in order.
    """
    if layers_per_block is None:
        if B > layers:
            raise ValueError(f"blocks is {B} but the network has {layers} layers; lower blocks")
        if layers % B:
            raise ValueError(
                f"{layers} layers do not divide into {B} equal blocks; "
                "set layers_per_block or choose a divisor"
            )
        layers_per_block = [layers // B] * B
    if len(layers_per_block) != B:
        raise ValueError(
            f"layers_per_block {layers_per_block} names {len(layers_per_block)} blocks; "
            f"expected {B}"
        )
    if min(layers_per_block) < 1 or sum(layers_per_block) != layers:
        raise ValueError(
            f"layers_per_block {layers_per_block} adds up to {sum(layers_per_block)}; "
            f"expected at least 1 each and {layers} together"
        )
    starts = [sum(layers_per_block[:b]) for b in range(B)]
    return [range(s, s + n) for s, n in zip(starts, layers_per_block, strict=True)]
