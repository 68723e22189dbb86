"""Sampling with one block on the device at a time, streamed from disk."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..blocks import Assembled
from ..networks.dit import DiT
from ..tensors import load_tensors


class Streamed(Assembled):
    """The blocks of a manifest, of which only the one that works is on the device.

    Sampling visits the blocks in order, so the next one's weights are read to the host while
    the current one works. Use it as a context manager, which ends the reading thread.

    Args:
        path: a manifest, as for :class:`~diffusionblocks.blocks.Assembled`.
        prefetch: read the next block ahead of time.
    """

    def __init__(self, path: Path, device: torch.device, prefetch: bool = True):
        self._reader = ThreadPoolExecutor(1) if prefetch else None
        self._ahead: tuple[str, Future[dict[str, Tensor]]] | None = None
        self._held: tuple[str, DiT] | None = None
        super().__init__(path, device)

    def __enter__(self) -> "Streamed":
        return self

    def __exit__(self, *exception) -> None:
        if self._reader is not None:
            self._reader.shutdown()

    def _load(self) -> None:
        """Nothing is loaded until a block is asked for."""

    def _read(self, file: str) -> dict[str, Tensor]:
        """The weights of a file, read ahead or now."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == file:
            return ahead[1].result()
        return load_tensors(self._folder / file)

    def _read_ahead(self, file: str) -> dict[str, Tensor]:
        """The weights of a file in memory: a file that is only mapped is read when it is used."""
        return {name: value.clone() for name, value in load_tensors(self._folder / file).items()}

    def _hold(self, block: int) -> DiT:
        """The network of a block, on the device; the one before it makes room."""
        entries = self.manifest["blocks"]
        file, depth = entries[block]["file"], entries[block]["depth"]
        if self._held is None or self._held[0] != file:
            network = self._held[1] if self._held else None
            # Weights replace those of a network of the same depth where they lie.
            if network is None or len(network.layers) != depth:
                self._held = network = None
                with self.device:
                    network = DiT(self._shape, depth).eval()
            network.load_state_dict(self._read(file))
            self._held = file, network
            following = entries[(block + 1) % len(entries)]["file"]
            if self._reader is not None and following != file:
                self._ahead = following, self._reader.submit(self._read_ahead, following)
        return self._held[1]

    def network(self, block: int) -> Callable[..., Tensor]:
        """F of one block, called as F(c_in·z, c_noise, label)."""
        return partial(self._hold(block), layers=range(*self.manifest["blocks"][block]["layers"]))
