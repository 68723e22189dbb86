"""Finds where a step would make the host wait for a device, on machines without one."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
#: Operators whose result the host must know before it can go on.
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten._unique2.default,
}


class Waits(AssertionError):
    pass


class NoWaiting(TorchDispatchMode):
    """Fails at any operator at which a device would make the host wait."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function in WAITING:
            raise Waits(str(function))
        if function is aten.index.Tensor:
            if any(i is not None and i.dtype == torch.bool for i in arguments[1]):
                raise Waits("a boolean index")
        return function(*arguments, **(keywords or {}))
