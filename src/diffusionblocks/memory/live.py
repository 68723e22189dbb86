"""Which tensors are alive, when, and what they are: a log of every storage's birth and death.

A dispatch mode sees each operation's results; a weak reference to a result's storage tells when
it dies. Under PyTorch's fake tensors nothing is computed or allocated, yet the order of births
and deaths is that of the real step, so the log's peak is the real allocator's peak.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

#: What a byte is for. *Activations* are results of the forward pass, those that checkpointing
#: computes again included; *other* is the batch, buffers, gradients of activations, temporaries.
LABELS = ("parameters", "gradients", "optimizer_state", "ema", "activations", "other")


@dataclass(slots=True)
class _Storage:
    """Bytes of a storage and what they are for; ``host`` ones are not on the device."""

    nbytes: int
    label: str


class LiveTensors(TorchDispatchMode):
    """Logs every storage that is born while the mode is on.

    Storages are labelled where they are born (activations where gradients are recorded, other
    elsewhere) and may be given a truer label as long as they live, see :meth:`label`.
    """

    def __init__(self):
        super().__init__()
        self._events: list[tuple[_Storage, int]] = []  # (storage, bytes gained or lost)
        self._alive: dict[int, tuple[weakref.ref, _Storage]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled in here, and the wrapper would cost more than the method.
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # two dispatches in three ask this; answer them here
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._see(result)
        elif isinstance(result, tuple | list):
            for item in result:
                if isinstance(item, Tensor):
                    self._see(item)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        label = "activations" if torch.is_grad_enabled() else "other"
        entry = _Storage(storage.nbytes(), label)
        events, alive = self._events, self._alive

        def died(_: weakref.ref) -> None:
            del alive[key]
            events.append((entry, -entry.nbytes))

        alive[key] = weakref.ref(storage, died), entry
        events.append((entry, entry.nbytes))

    def label(self, label: str, tensors: Iterable[Tensor]) -> None:
        """Say what living tensors are for; holds for their whole life, past and future."""
        for tensor in tensors:
            found = self._alive.get(tensor.untyped_storage()._cdata)
            if found is not None:
                found[1].label = label

    def peak(self) -> dict[str, int]:
        """Bytes by label at the moment when the device held most; ``host`` is not counted."""
        now = dict.fromkeys(LABELS, 0)
        total = highest = 0
        at_peak = dict(now)
        for storage, change in self._events:
            if storage.label == HOST:
                continue
            now[storage.label] += change
            total += change
            if total > highest:
                highest, at_peak = total, dict(now)
        return at_peak

    def host_peak(self) -> int:
        """Most bytes that were held on the host at once."""
        total = highest = 0
        for storage, change in self._events:
            total += change if storage.label == HOST else 0
            highest = max(highest, total)
        return highest


#: Label of what was moved off the device.
HOST = "host"
