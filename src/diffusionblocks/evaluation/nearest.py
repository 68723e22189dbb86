"""Distance from an image to the nearest training image: memorising is not quality."""

import torch
from torch import Tensor

#: Pixels multiplied at once. Centred bytes lie in −128 … 127, so a sum of 1,024 products is
#: an integer of at most 2²⁴, which float32 holds exactly in any order of summation.
PIXELS = 1024
QUERIES = 1024
REFERENCES = 4096


def _squares(x: Tensor) -> Tensor:
    """Squared length of every row of centred bytes, exact, float64 [N]."""
    return x.double().square().sum(1)


def _products(queries: Tensor, references: Tensor) -> Tensor:
    """Inner products of rows of centred bytes, exact, float64 [Q, R]."""
    total = torch.zeros(len(queries), len(references), dtype=torch.float64, device=queries.device)
    for q, r in zip(queries.split(PIXELS, 1), references.split(PIXELS, 1), strict=True):
        total += q @ r.T
    return total


def _centred(images: Tensor, device: torch.device | str) -> Tensor:
    """Images uint8 [N, …] as float32 rows in −128 … 127; differences stay what they were."""
    return images.to(device).flatten(1).float() - 128


@torch.no_grad()
def nearest_distances(
    queries: Tensor, references: Tensor, device: torch.device | str = "cpu"
) -> Tensor:
    """Distance from every query to its nearest reference, no reference excluded.

    The distance is the root mean square difference over all values of the two images (pixels
    and channels), with 0 … 255 scaled to 0 … 1: 0 for a copy, 1 for black against white.
    ‖q − r‖² = ‖q‖² + ‖r‖² − 2·q·r loses all digits for near copies in floating point; here
    every term is an exact integer, so a copy is at exactly 0.

    Args:
        queries: uint8 [Q, C, H, W].
        references: uint8 [R, C, H, W], R ≥ 1; may be memory-mapped.
        device: where the products are computed.

    Returns:
        float32 [Q] on the CPU.
    """
    values = references[0].numel()
    nearest = []
    for query_chunk in queries.split(QUERIES):
        q = _centred(query_chunk, device)
        q_squares = _squares(q)
        best = torch.full_like(q_squares, torch.inf)
        for reference_chunk in references.split(REFERENCES):
            r = _centred(reference_chunk, device)
            squared = _squares(r) - 2 * _products(q, r)
            best = torch.minimum(best, squared.amin(1))
        nearest.append(((q_squares + best) / values).sqrt() / 255)
    return torch.cat(nearest).float().cpu()
