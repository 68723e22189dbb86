"""The training job: the thin loop around :func:`~diffusionblocks.training.step.train_step`.

One job trains one *part* of a run: ``block3`` of independent blocks builds and holds that
block's layers only; ``block0`` of an end-to-end run is the whole network; ``all`` is an
interleaved run, which holds every layer and updates one block a step.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..config import RunConfig
from ..errors import UserError
from ..parts import Part
from .checkpoint import load_checkpoint, save_checkpoint
from .offload import HostState
from .replicas import ALONE, Replicas
from .schedule import ema_decay, interleaved_block, learning_rate
from .step import new_state, train_step

#: Steps between two looks at the losses; each look makes the device wait.
LOOK_EVERY = 50


class Task(Protocol):
    """What the loop asks of a task; see :class:`diffusionblocks.tasks.images.ImageTask`."""

    def network(self, layers: int, *key: int | str) -> torch.nn.Module: ...  # noqa: D102
    def batch(self, block: int, iteration: int) -> tuple[Tensor, ...]: ...  # noqa: D102
    def loss(self, network, batch, layers: range | None) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class Trained:
    """What a finished job leaves.

    Attributes:
        ema: averaged weights by name.
        history: float32 [steps, 2], loss and gradient norm of every step.
        seconds: training time, added up over interruptions.
        parameters: trained numbers.
        diverged_at: step of the loss that ended the job early, being not finite; else None.
    """

    ema: dict[str, Tensor]
    history: Tensor
    seconds: float
    parameters: int
    diverged_at: int | None = None


def schedule_of(run: RunConfig, part: Part, step: int) -> tuple[int, int]:
    """(block, that block's iteration) at a step of a job."""
    if len(part.blocks) == 1:
        return part.blocks[0], step
    return interleaved_block(run.seed, step, len(part.blocks))


def first_not_finite(recent: Tensor) -> int | None:
    """Row of the first loss or gradient norm that is not finite, in [steps, 2]."""
    bad = (~torch.isfinite(recent).all(1)).nonzero()
    return int(bad[0]) if len(bad) else None


def _diverged(step: int, run: RunConfig, part: Part, ranges) -> UserError:
    """What to say of a step whose loss or gradient norm is not finite."""
    block, iteration = schedule_of(run, part, step)
    own = ranges[block]
    return UserError(
        f"{run.name} {part.name}: the loss is not finite at step {step} (block {block}, "
        f"iteration {iteration}, σ from {own.train_lo:.4g} to {own.train_hi:.4g}); the last "
        "good checkpoint is kept: lower training.learning_rate or training.clip_norm"
    )


def step_losses(
    run: RunConfig, part: Part, task: Task, network, batch, block: int, share=ALONE.share
) -> list:
    """The loss functions of one step of a block, one per microbatch of this process's batch."""
    parts = run.training.accumulation
    microbatches = zip(*(share(t).chunk(parts) for t in batch), strict=True)
    layers = part.layers[block]
    return [partial(task.loss, network, type(batch)(*m), layers) for m in microbatches]


def train(
    run: RunConfig,
    part: Part,
    task: Task,
    ranges: list,
    state_folder: Path,
    clock: Callable[[], float],
    report: Callable[[int, int, float], None],
    after_step: Callable[[], None] = lambda: None,
    stop_after: float | None = None,
    replicas: Replicas = ALONE,
) -> Trained | None:
    """Train one part of a run, resuming where an earlier job was stopped.

    Args:
        ranges: noise range of every block, for messages.
        state_folder: where checkpoints live; removed by :func:`forget` once outputs stand.
        clock: seconds from any origin.
        report: called as report(steps done, steps in all, latest loss) at every look.
        after_step: called after every update.
        stop_after: seconds on the clock after which to leave a checkpoint and stop. Going on
            gives the bits of a job never stopped (but a diverged one that is to be recorded
            falls back to its newest checkpoint, and this is one).
        replicas: this process among those of a data-parallel job.

    Returns:
        What the finished job leaves; None where it was stopped before its end.

    Raises:
        UserError: a loss that is not finite, unless the run is to record it; or a checkpoint
            that cannot be used.
    """
    settings = run.training
    network = task.network(part.depth, part.name)
    fused = settings.optimizer == "fused"
    state = new_state(network, settings.betas, settings.weight_decay, fused)
    resumed = load_checkpoint(state_folder, state, run.hash)
    host = HostState(state, part, settings.optimizer_state == "offloaded")
    host.release(part.blocks)
    start = resumed.step if resumed else 0
    spent = resumed.seconds if resumed else 0.0
    looks = [resumed.history] if resumed else []
    steps = settings.iterations * len(part.blocks)
    forward = network
    if settings.compile:
        # Shapes never change within a job, but for the slice of layers of an interleaved one.
        forward = torch.compile(network, mode=settings.compile_mode, dynamic=False)
    network.train()

    pending: list[Tensor] = []
    diverged_at = None
    began = clock()
    for step in range(start, steps):
        block, iteration = schedule_of(run, part, step)
        batch = task.batch(block, iteration)
        losses = step_losses(run, part, task, forward, batch, block, replicas.share)
        rate = learning_rate(
            iteration,
            settings.iterations,
            settings.learning_rate * run.learning_rate_scale,
            settings.warmup_iterations,
            settings.schedule,
        )
        decay = ema_decay(iteration, settings.batch_size, settings.ema_halflife_samples)
        with host.active(block):
            norm = settings.clip_norm
            pending.append(train_step(state, losses, rate, decay, norm, replicas.average))
        after_step()

        done = step + 1
        stopped = stop_after is not None and clock() - began >= stop_after and done < steps
        due = stopped or (done % settings.checkpoint_every == 0 and done < steps)
        if due or done == steps or len(pending) == LOOK_EVERY:
            recent = torch.stack(pending).cpu()
            bad = first_not_finite(recent)
            if bad is not None:
                diverged_at = done - len(recent) + bad
                if settings.on_divergence == "stop":
                    raise _diverged(diverged_at, run, part, ranges)
                # The weights that stood before: of the last checkpoint, or the first ones.
                network = task.network(part.depth, part.name)
                state = new_state(network, settings.betas, settings.weight_decay, fused)
                load_checkpoint(state_folder, state, run.hash)
                looks.append(recent[: bad + 1])
                break
            looks.append(recent)
            pending = []
            if replicas.leads:
                report(done, steps, float(recent[:, 0].mean()))
        if due and replicas.leads:
            elapsed = max(0.0, spent + clock() - began)
            save_checkpoint(state_folder, state, done, torch.cat(looks), elapsed, run.hash)
        if stopped:
            return None
    return Trained(
        ema={name: value.detach().cpu() for name, value in state.ema.items()},
        history=torch.cat(looks) if looks else torch.empty(0, 2),
        # The clock leaves out the time that is spent on looking at memory; never less than none.
        seconds=max(0.0, spent + clock() - began),
        parameters=sum(p.numel() for p in state.network.parameters() if p.requires_grad),
        diverged_at=diverged_at,
    )


def forget(state_folder: Path) -> None:
    """Remove the checkpoints of a job whose outputs stand."""
    shutil.rmtree(state_folder, ignore_errors=True)
