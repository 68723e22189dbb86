"""Planning: a training step's peak to the byte, without doing its arithmetic or using its memory.

The library's own step runs under PyTorch's fake tensors on the CPU until its memory repeats,
while :class:`~diffusionblocks.memory.live.LiveFakeTensors` logs what lives. A step of DiT-L/2 at
batch 512, 250 GiB, is planned in seconds on a laptop.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..training.step import TrainState
from .live import HOST, LiveFakeTensors, Lives
from .point import Point
from .rehearsal import Rehearsal
from .text_point import TextPoint


@dataclass(frozen=True)
class Plan:
    """Bytes of a training step at its peak.

    Attributes:
        labels: bytes by label (``live.LABELS``) at the moment when most is held.
        host_bytes: most that offloading holds on the host.
    """

    labels: dict[str, int]
    host_bytes: int

    @property
    def peak(self) -> int:
        """Bytes held at the peak."""
        return sum(self.labels.values())

    def columns(self) -> dict[str, int]:
        """The columns of a memory table."""
        labelled = {f"{label}_bytes": value for label, value in self.labels.items()}
        return {"planned_bytes": self.peak, **labelled, "host_bytes": self.host_bytes}


def _label(lives: Lives, state: TrainState) -> None:
    """Say what a job's lasting tensors are for."""
    lives.label("parameters", state.network.parameters())
    lives.label("gradients", [p.grad for p in state.network.parameters() if p.grad is not None])
    lives.label("ema", state.ema.values())
    lives.label("other", state.network.buffers())
    moments = [m for held in state.optimizer.moments.values() for m in held.values()]
    lives.label("optimizer_state", moments)


def plan(point: Point | TextPoint) -> Plan:
    """The peak of a point's training step by what it is for."""
    mode = LiveFakeTensors()
    lives = mode.lives

    def allocate(tensor: Tensor) -> Tensor:
        copy = torch.empty_like(tensor)
        lives.label(HOST, [copy])
        return copy

    with mode:
        rehearsal = Rehearsal(point, torch.device("cpu"), allocate)
        for i, block in enumerate(rehearsal.blocks):
            (rehearsal.step if i else rehearsal.first_step)(block)
            _label(lives, rehearsal.state)
            lives.label(HOST, rehearsal.host.copies)
        for state in rehearsal.neighbours:
            _label(lives, state)
    return Plan(lives.peak(), lives.host_peak())
