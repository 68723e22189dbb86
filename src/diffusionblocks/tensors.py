"""Tensors on disk: safetensors only, nothing is ever unpickled."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import UserError
from .files import atomic_path, delete


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file whole.

    Raises:
        UserError: the disk is full or the folder cannot be written to.
    """
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        # safetensors writes beside the file it is asked for, under a name that no process owns.
        folder = temporary.with_name(f"{temporary.stem}.folder{temporary.suffix}")
        folder.mkdir()
        try:
            save_file(contiguous, folder / "whole", metadata=metadata)
            (folder / "whole").replace(temporary)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise UserError(f"cannot write {path}: {error}; free space and run again") from None
        finally:
            delete(folder)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: the file is missing or not whole.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the step that makes it") from None
    # An empty file cannot be mapped, which is an OSError or a ValueError.
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); delete it and run again"
        ) from None


def load_samples(path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, C, H, W] and the labels int64 [N] they were drawn for.

    Raises:
        UserError: the file is missing, not whole, or holds something else.
    """
    tensors = load_tensors(path)
    images, labels = tensors.get("images"), tensors.get("labels")
    if images is None or labels is None or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise UserError(f"{path} holds no images with labels; delete it and sample again")
    return images, labels
