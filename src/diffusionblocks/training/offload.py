"""Optimiser state of the blocks that wait their turn, kept on the host (interleaved runs)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..parts import Part
from .step import TrainState

#: AdamW's tensors that are as large as their parameter.
LARGE = ("exp_avg", "exp_avg_sq")


def host_like(tensor: Tensor) -> Tensor:
    """Uninitialised memory of the host for a tensor.

    Page-locked beside CUDA, which copies faster. On a CPU host and device are one memory: the
    copy lies outside PyTorch's allocator, so that the allocator shows what a device would hold.
    """
    if tensor.device.type == "cuda":
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    return torch.from_numpy(np.empty(tuple(tensor.shape), dtype))


class HostState:
    """Moves AdamW's moments of a block to the device for its step, and back afterwards.

    What all blocks share (input, conditioning and output layers) stays on the device.

    Args:
        state: of the whole network.
        part: which layers every block has.
        offloaded: do it; nothing is ever moved otherwise, nor for a job of a single block.
        allocate: makes host memory for a tensor.
    """

    def __init__(
        self,
        state: TrainState,
        part: Part,
        offloaded: bool,
        allocate: Callable[[Tensor], Tensor] = host_like,
    ):
        self._state = state
        self._allocate = allocate
        self._copies: dict[tuple[str, str], Tensor] = {}
        self._names: dict[int, list[str]] = {}
        if offloaded and len(part.blocks) > 1:
            self._names = {
                block: [
                    f"layers.{i}.{name}"
                    for i in layers
                    for name, _ in state.network.layers[i].named_parameters()
                ]
                for block, layers in part.layers.items()
            }

    def _moments(self, block: int) -> Iterator[tuple[str, dict[str, Tensor], str]]:
        for name in self._names.get(block, ()):
            # A parameter that has had no update yet has no moments.
            moments = self._state.optimizer.moments.get(name, {})
            for key in LARGE:
                if key in moments:
                    yield name, moments, key

    @property
    def copies(self) -> list[Tensor]:
        """Every tensor that lies on the host."""
        return list(self._copies.values())

    def fetch(self, block: int) -> None:
        """Copy a block's moments to the device of its weights."""
        for name, moments, key in self._moments(block):
            moments[key] = torch.empty_like(self._state.ema[name]).copy_(moments[key])

    def release(self, blocks: Iterable[int]) -> None:
        """Copy blocks' moments to the host and drop them from the device."""
        for block in blocks:
            for name, moments, key in self._moments(block):
                if (name, key) not in self._copies:
                    self._copies[name, key] = self._allocate(moments[key])
                moments[key] = self._copies[name, key].copy_(moments[key])

    @contextmanager
    def active(self, block: int) -> Iterator[None]:
        """The block's moments are on the device inside, on the host afterwards."""
        self.fetch(block)
        yield
        self.release([block])
