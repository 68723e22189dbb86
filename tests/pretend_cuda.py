"""A CUDA device for machines without one: tensors that say they are on it and compute on the CPU.

What it finds is tensors of two devices in one operation, and reads that copy nothing back: the
faults that otherwise show on the first day with a GPU. It says nothing of speed, and attention,
autocast and the allocator are PyTorch's on the CPU.
"""

import contextlib
from types import SimpleNamespace
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
#: Operators that move numbers between devices, so that theirs may differ.
MOVING = {
    aten._to_copy.default, aten.copy_.default, aten._has_compatible_shallow_copy_type.default
}  # fmt: skip
#: Operators that take indices of either device.
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}


class DevicesDiffer(AssertionError):
    pass


class OnCuda(torch.Tensor):
    """A tensor that says it is on the device; ``inner`` holds its numbers.

    To PyTorch's own code it is a meta tensor: autograd would ask a driver for streams of CUDA.
    """

    device = CUDA
    is_meta, is_cuda = False, True

    @staticmethod
    def __new__(cls, inner):
        # A view of a tensor from outside inference mode is none of that mode either.
        with torch.inference_mode(inner.is_inference()):
            made = torch.Tensor._make_wrapper_subclass(
                cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
                dtype=inner.dtype, device="meta", requires_grad=inner.requires_grad,
            )  # fmt: skip
        made.inner = inner
        return made

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self):
        return f"OnCuda({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        return run(function, arguments, keywords or {})


def run(function, arguments, keywords):
    """An operator on the CPU, with the devices of its tensors checked."""
    found = []
    tree_map(lambda x: found.append(x) if isinstance(x, torch.Tensor) else None,
             (arguments, keywords))  # fmt: skip
    ours = [x for x in found if isinstance(x, OnCuda)]
    # Numbers without dimensions may lie on the CPU beside tensors of any device.
    strangers = [x for x in found if not isinstance(x, OnCuda) and x.dim()]
    if ours and strangers and function not in MOVING | INDEXING:
        raise DevicesDiffer(f"{function} with tensors of cuda and of the CPU")
    if function is aten._fused_sdp_choice.default and ours:
        return 0  # the CPU has no kernel of the others' names
    names = [argument.name for argument in function._schema.arguments]
    if "device" in names[: len(arguments)]:
        arguments, more = arguments[: names.index("device")], arguments[names.index("device") :]
        keywords = dict(zip(names[len(arguments) :], more, strict=False)) | keywords
    wanted = keywords.get("device")
    # PyTorch's own code asks for more of what it takes for meta tensors.
    here = torch.device(wanted).type in ("cuda", "meta") if wanted is not None else bool(ours)
    if wanted is not None:
        keywords = {**keywords, "device": torch.device("cpu")}
        keywords |= {"pin_memory": None} if "pin_memory" in names else {}
    if function is aten.copy_.default:
        here = isinstance(arguments[0], OnCuda)
    owners = {id(x.inner): x for x in ours}
    plain = tree_map(lambda x: x.inner if isinstance(x, OnCuda) else x, (arguments, keywords))
    made = function(*plain[0], **plain[1])
    if wanted is not None and not here and isinstance(made, torch.Tensor):
        return made.clone() if any(made is x.inner for x in ours) else made

    def known(x):
        if not isinstance(x, torch.Tensor) or isinstance(x, OnCuda) or not here:
            return x
        return owners[id(x)] if id(x) in owners else OnCuda(x)

    return tree_map(known, made)


class Generator:
    """Makes one of the CPU for any device; a type, since annotations name it."""

    def __new__(cls, device=None, made=torch.Generator):
        return made()


class Factories(TorchDispatchMode):
    """Operators without a tensor of ours, which may make one."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        return run(function, arguments, keywords or {})


@contextlib.contextmanager
def pretend_cuda():
    """Within it there is one CUDA device."""
    card = SimpleNamespace(uuid="pretended", total_memory=80 * 2**30, name="a pretended device")
    answers = {
        "is_available": True, "device_count": 1, "_lazy_init": None, "set_device": None,
        "get_device_properties": card, "get_device_name": card.name, "synchronize": None,
        "max_memory_allocated": 2**30, "max_memory_reserved": 2**30, "memory_allocated": 2**20,
        "reset_peak_memory_stats": None, "empty_cache": None, "is_bf16_supported": True,
        "current_device": 0, "mem_get_info": (2**36, 2**37), "get_rng_state": None,
        "manual_seed_all": None, "is_current_stream_capturing": False,
    }  # fmt: skip
    with contextlib.ExitStack() as patched:
        for name, answer in answers.items():
            patched.enter_context(
                mock.patch.object(torch.cuda, name, lambda *a, answer=answer, **k: answer)
            )
        for owner, name, other in (
            (torch, "Generator", Generator),
            (torch.Tensor, "pin_memory", lambda x, *a: x),
            (torch.Tensor, "cuda", lambda x, *a, **k: x.to(CUDA)),
            # It knows its types of tensors.
            (torch.nn.utils.clip_grad, "_device_has_foreach_support", lambda *a: True),
        ):
            patched.enter_context(mock.patch.object(owner, name, other))
        # Modules that move take new parameters: the old ones are of another type.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        patched.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        # As fake tensors have it: torch.tensor moves what it made by an operator of its own.
        torch._C._set_only_lift_cpu_tensors(True)
        patched.callback(torch._C._set_only_lift_cpu_tensors, False)
        patched.enter_context(Factories())
        yield CUDA
