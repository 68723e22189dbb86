"""Which tensors are alive, when, and what they are: a log of every storage's birth and death.

Under :class:`LiveFakeTensors` nothing is computed or allocated, yet the order of births and
deaths is that of the real step, so the log's peak is the real allocator's peak.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

#: What a byte is for. *Activations* are results of the forward pass, those that checkpointing
#: computes again included; *other* is the batch, buffers, gradients of activations, temporaries.
LABELS = ("parameters", "gradients", "optimizer_state", "ema", "activations", "other")
#: Label of what was moved off the device; it counts apart.
HOST = "host"


@dataclass(slots=True)
class _Storage:
    """Bytes of a storage and what they are for."""

    nbytes: int
    label: str


class Lives:
    """The log: births and deaths of storages, in order.

    A storage is labelled at birth (activations where gradients are recorded, other elsewhere)
    and may be given a truer label as long as it lives, see :meth:`label`.
    """

    def __init__(self):
        self._events: list[tuple[_Storage, int]] = []  # (storage, bytes gained or lost)
        self._alive: dict[int, tuple[weakref.ref, _Storage]] = {}

    def see(self, tensor: Tensor) -> None:
        """Note a tensor's storage if it is new; a weak reference tells when it dies."""
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
        """Say what living tensors are for; it holds for their whole life, past and future."""
        for tensor in tensors:
            self._alive[tensor.untyped_storage()._cdata][1].label = label

    def peak(self) -> dict[str, int]:
        """Bytes by label at the moment when the device held most."""
        now = dict.fromkeys(LABELS, 0)
        total = highest = 0
        at_peak = dict(now)
        for storage, change in self._events:
            if storage.label != HOST:
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


class LiveFakeTensors(FakeTensorMode):
    """Makes every tensor fake and logs it in ``lives``.

    One mode rather than a tracking mode upon PyTorch's own: half the calls for each operation,
    and without the latter's wrapper, which imports the compiler.
    """

    def __init__(self):
        super().__init__()
        self.lives = Lives()
        self._inside = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked for twice as often as all else together
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1  # AdamW's foreach form reads its step count, on which no size depends
        if self._inside:  # a step of an operation's stand-in, which the real one does not take
            return self.dispatch(func, types, args, kwargs)
        self._inside = True
        try:
            result = self.dispatch(func, types, args, kwargs)
        finally:
            self._inside = False
        if isinstance(result, Tensor):
            self.lives.see(result)
        elif isinstance(result, tuple | list):
            for item in result:
                if isinstance(item, Tensor):
                    self.lives.see(item)
        return result
