"""The training step itself, run for its memory: real code, batches of the right shape, no data."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..networks.dit import DiT
from ..networks.gpt import Decoder
from ..preconditioning import Preconditioning
from ..tasks.images import ImageBatch, ImageTask, dit_shape
from ..tasks.language import LanguageTask, NoisyTokenBatch, TokenBatch, build
from ..training.loop import step_losses
from ..training.offload import HostState, host_like
from ..training.step import TrainState, new_state, train_step
from .point import Images, Point
from .text_point import TextPoint


class BareTask(ImageTask):
    """The image task without a data set: the same network and loss on batches of zeros."""

    def __init__(self, point: Point, device: torch.device):
        self.run = point.run
        self.device = device
        self.preconditioning = Preconditioning(point.run.noise.sigma_data)
        self._images: Images = point.images

    def network(self, layers: int, *key: int | str) -> DiT:
        """A network of that many layers with PyTorch's own initial weights."""
        images = self._images
        shape = dit_shape(self.run.network, images.image_size, images.channels, images.classes)
        with self.device:  # fake tensors cannot be moved by Module.to
            return DiT(shape, layers, self.run.training.activation_checkpointing)

    def batch(self, block: int, iteration: int) -> ImageBatch:
        """What :meth:`ImageTask.batch` returns, with zeros for images and noise, at σ = 1."""
        n, images = self.run.training.batch_size, self._images
        shape = (n, images.channels, images.image_size, images.image_size)
        with torch.no_grad():
            return ImageBatch(
                torch.zeros(shape, device=self.device),
                torch.ones(n, device=self.device),
                torch.zeros(shape, device=self.device),
                torch.zeros(n, dtype=torch.int64, device=self.device),
            )


class BareText(LanguageTask):
    """The language task without a text: the same networks and losses on tokens that are all 0."""

    def __init__(self, point: TextPoint, device: torch.device):
        self.run = point.run
        self.device = device
        self.vocabulary = point.vocabulary
        self.preconditioning = Preconditioning(point.run.noise.sigma_data)
        # Says that the task denoises; the network's own table is the one that is read.
        self.table = None if point.run.embedding is None else torch.empty(0, device=device)

    def network(self, layers: int, *key: int | str) -> Decoder:
        """A network of that many layers with PyTorch's own initial weights."""
        with self.device:
            return build(self.run, self.vocabulary, layers)

    def batch(self, block: int, iteration: int) -> TokenBatch | NoisyTokenBatch:
        """What :meth:`LanguageTask.batch` returns, with zeros for tokens and noise, at σ = 1."""
        network, n = self.run.network, self.run.training.batch_size
        shape = (n, network.context_length)
        with torch.no_grad():
            tokens = torch.zeros(shape, dtype=torch.int64, device=self.device)
            if self.table is None:
                return TokenBatch(tokens)
            eps = torch.zeros((*shape, network.width), device=self.device)
            return NoisyTokenBatch(tokens, torch.ones(n, device=self.device), eps)


#: Every task without its data.
BARE = {"images": BareTask, "language": BareText}


class Rehearsal:
    """Everything that a training job of a point holds, and its step.

    Args:
        device: where it runs; under fake tensors nothing is computed or allocated.
        allocate: makes host memory for offloaded optimiser state.
    """

    def __init__(
        self,
        point: Point | TextPoint,
        device: torch.device,
        allocate: Callable[[Tensor], Tensor] = host_like,
    ):
        self.point = point
        self._task = BARE[point.run.task](point, device)
        self.neighbours = [self._neighbour(depth) for depth in point.neighbours]
        self.state = self._state(point.part.depth)
        offloaded = point.run.training.optimizer_state == "offloaded"
        self.host = HostState(self.state, point.part, offloaded, allocate)

    @property
    def blocks(self) -> list[int]:
        """The blocks to step until memory repeats: all once, then the deepest again.

        Optimiser state is made by a block's first step, so one step each shows too little.
        """
        part = self.point.part
        deepest = max(part.blocks, key=lambda b: len(part.layers[b] or range(part.depth)))
        return [b for b in part.blocks if b != deepest] + [deepest, deepest]

    def _state(self, depth: int) -> TrainState:
        training = self.point.run.training
        network = self._task.network(depth).train()
        return new_state(
            network, training.betas, training.weight_decay, training.optimizer == "fused"
        )

    def _neighbour(self, depth: int) -> TrainState:
        """Another block that was trained before and stays on the device; its gradients do not."""
        state = self._state(depth)
        self._update(state)
        for parameter in state.network.parameters():
            parameter.grad = None
        return state

    def _update(self, state: TrainState) -> None:
        """What a first step leaves (gradients and moments), without its passes."""
        named = state.network.named_parameters()
        parameters = {name: p for name, p in named if p.requires_grad}
        for parameter in parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        state.optimizer.update(parameters, self.point.run.training.learning_rate)

    def _step(self, state: TrainState, block: int) -> None:
        run = self.point.run
        batch = self._task.batch(block, 0)
        losses = step_losses(run, self.point.part, self._task, state.network, batch, block)
        train_step(state, losses, run.training.learning_rate, 0.9, run.training.clip_norm)

    def first_step(self, block: int) -> None:
        """One update of a block, for planning: where every parameter is reached, only its end.

        A first step has no moments while activations are alive, so the next one needs more.
        """
        if len(self.point.part.blocks) == 1:
            self._update(self.state)
        else:
            self.step(block)

    def step(self, block: int) -> None:
        """One update of a block."""
        with self.host.active(block):
            self._step(self.state, block)
