"""Tensors on disk: safetensors only, nothing is ever unpickled."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import UserError
from .files import atomic_path


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file whole.

    Raises:
        UserError: the disk is full or the folder cannot be written to.
    """
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata=metadata)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise UserError(f"cannot write {path}: {error}; free space and run again") from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: the file is missing or not whole.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the step that makes it") from None
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); delete it and run again"
        ) from None
