"""One update of one block: forward, backward, clip, optimiser, average. No host synchronisation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .adamw import AdamW


@dataclass
class TrainState:
    """A network with its optimiser and the moving average of its weights.

    ``ema`` maps parameter names to tensors; only the entries whose parameters got a gradient
    in a step move in that step, as do the optimiser's moments.
    """

    network: nn.Module
    optimizer: AdamW
    ema: dict[str, Tensor]


def new_state(
    network: nn.Module, betas: tuple[float, float], weight_decay: float, fused: bool = True
) -> TrainState:
    """State at step 0: no moments yet, EMA equal to the weights."""
    ema = {name: p.detach().clone() for name, p in network.named_parameters()}
    return TrainState(network, AdamW(betas, weight_decay, fused), ema)


def train_step(
    state: TrainState,
    losses: list[Callable[[], Tensor]],
    learning_rate: float,
    ema_decay: float,
    clip_norm: float,
) -> Tensor:
    """Update the parameters that the losses reach; leave all others, bit for bit.

    Args:
        losses: one function per microbatch, each returning per-example losses [N / parts].
        learning_rate: of this step.
        ema_decay: of this step, see :func:`~diffusionblocks.training.schedule.ema_decay`.
        clip_norm: largest norm of the gradient over all parameters reached.

    Returns:
        [2] on the device: mean loss and gradient norm before clipping.
    """
    named = dict(state.network.named_parameters())
    for parameter in named.values():
        parameter.grad = None
    total = 0.0
    for loss in losses:
        part = loss().mean() / len(losses)
        part.backward()
        total = total + part.detach()
    reached = {name: p for name, p in named.items() if p.grad is not None}
    # Said outright, so that planning under fake tensors takes the same way as a real step.
    norm = nn.utils.clip_grad_norm_(reached.values(), clip_norm, foreach=True)
    state.optimizer.update(reached, learning_rate)
    with torch.no_grad():
        averages = [state.ema[name] for name in reached]
        torch._foreach_lerp_(averages, list(reached.values()), 1 - ema_decay)
    return torch.stack([total, norm])
