"""Choosing the device and the number of threads of a job."""

import torch

from .device_claims import claim, lock_folder
from .errors import UserError


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


def prepare(wanted: str, threads: int) -> torch.device:
    """Choose the device and fix what decides the bits of a job's arithmetic: the threads."""
    torch.set_num_threads(threads)
    device = choose_device(wanted)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return device
