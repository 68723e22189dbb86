"""Data parallelism: several processes, started by torchrun, train one part on shares of a batch.

Every process holds the same weights and makes the same global batch, of which it works on its own
share; gradients and losses are averaged over the processes before clipping, so all of them take
the step that one process with the whole batch would take, up to rounding.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from ..errors import UserError


@dataclass(frozen=True)
class Replicas:
    """This process among those that train a part together.

    Attributes:
        rank: 0 … count − 1; only rank 0 writes files.
        average: replaces tensors by their means over the processes.
    """

    rank: int = 0
    count: int = 1
    average: Callable[[list[Tensor]], None] = lambda tensors: None

    @property
    def leads(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part [N / count, …] of a batch [N, …]."""
        return batch.chunk(self.count)[self.rank] if self.count > 1 else batch


ALONE = Replicas()


def average(tensors: list[Tensor]) -> None:
    """Replace tensors by their means over all processes, in one message."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, mean in zip(tensors, flat.split(sizes), strict=True):
        tensor.copy_(mean.view_as(tensor))


def follows() -> bool:
    """Whether torchrun started this process to follow another one, which reports and writes."""
    return distributed.is_torchelastic_launched() and os.environ.get("RANK", "0") != "0"


@contextmanager
def replicas(device: torch.device, wanted: int) -> Iterator[Replicas]:
    """Join the processes that torchrun started beside this one, if it did.

    Args:
        wanted: how many processes the run's configuration asks for.

    Raises:
        UserError: there are more or fewer.
    """
    if not distributed.is_torchelastic_launched():
        _require(1, wanted)
        yield ALONE
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        _require(distributed.get_world_size(), wanted)
        yield Replicas(distributed.get_rank(), distributed.get_world_size(), average)
    finally:
        distributed.destroy_process_group()


def _require(found: int, wanted: int) -> None:
    if found != wanted:
        raise UserError(
            f"compute.processes is {wanted} but there are {found} processes; set "
            f"compute.processes={found}, or start the job with torchrun --nproc-per-node {wanted}"
        )
