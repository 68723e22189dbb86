"""One update of one block: forward, backward, clip, optimiser, average. No host synchronisation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class TrainState:
    """A network with its optimiser and the moving average of its weights.

    ``ema`` maps parameter names to tensors; only the entries whose parameters got a gradient
    in a step move in that step, as do the optimiser's moments.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: dict[str, Tensor]


def new_state(
    network: nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> TrainState:
    """State at step 0: fused AdamW over every parameter of the network, EMA equal to it."""
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True
    )
    ema = {name: p.detach().clone() for name, p in network.named_parameters()}
    return TrainState(network, optimizer, ema)


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
    state.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for loss in losses:
        part = loss().mean() / len(losses)
        part.backward()
        total = total + part.detach()
    reached = [(n, p) for n, p in state.network.named_parameters() if p.grad is not None]
    parameters = [p for _, p in reached]
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.step()
    with torch.no_grad():
        torch._foreach_lerp_([state.ema[n] for n, _ in reached], parameters, 1 - ema_decay)
    return torch.stack([total, norm])
