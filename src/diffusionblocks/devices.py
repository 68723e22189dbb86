"""Choosing the device of a job, what decides the bits of its arithmetic, and moving data to it."""

import os

import torch
from torch import Tensor

from .config import ComputeConfig
from .device_claims import claim, lock_folder
from .errors import UserError

#: Share of a device's memory that training images may take under ``compute.data: auto``.
RESIDENT_SHARE = 0.25


def choose_device(wanted: str) -> torch.device:
    """``auto`` takes CUDA where there is one; of several GPUs, one that no other job holds.

    Raises:
        UserError: CUDA was asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "compute.device is cuda but PyTorch finds no CUDA device; "
            "set compute.device=cpu or auto"
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda":
        return torch.device("cuda", claim(cards(), lock_folder()))
    return torch.device(wanted)


def cards() -> list[str]:
    """Names of the GPUs that this process may use, which hold for every process."""
    found = range(torch.cuda.device_count())
    return [str(torch.cuda.get_device_properties(i).uuid) for i in found]


def prepare(
    wanted: str, threads: int, tf32: bool = True, deterministic: bool = False
) -> torch.device:
    """Choose the device and fix what decides the bits of a job's arithmetic: the threads.

    Args:
        tf32: on CUDA let products of float32 numbers round their factors to 10 bits.
        deterministic: on CUDA take only algorithms that give the same bits at every run. The CPU
            takes no others.
    """
    torch.set_num_threads(threads)
    device = choose_device(wanted)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        if deterministic:
            # cuBLAS reads it when it starts; without it its products are refused.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
    return device


def prepare_for(compute: ComputeConfig) -> torch.device:
    """The device of a job with these settings, prepared."""
    return prepare(compute.device, compute.threads, compute.tf32, compute.deterministic)


def lies_on_device(wanted: str, nbytes: int, device: torch.device) -> bool:
    """Whether training images of that many bytes are to lie on the device.

    Args:
        wanted: ``compute.data``: auto, device or host.
    """
    if wanted != "auto" or device.type != "cuda":
        return wanted != "host"
    return nbytes <= RESIDENT_SHARE * torch.cuda.get_device_properties(device).total_memory


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy from the host without waiting: a plain copy to CUDA would hold up the host's queue."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
