"""Where a number came from: code, versions, device, time. Stands in every metrics file."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import __version__

PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "torch-fidelity", "timm")


def _git(*arguments: str) -> str | None:
    """Output of a git command in the folder of the code; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def provenance(device: torch.device, now: datetime | None = None) -> dict[str, Any]:
    """Commit and its cleanliness, versions, device, threads and time, ready for JSON."""
    status = _git("status", "--porcelain", "--untracked-files=no")
    cuda = device.type == "cuda"
    return {
        "diffusionblocks": __version__,
        "commit": _git("rev-parse", "HEAD"),
        "clean": None if status is None else not status,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "device_kind": device.type,
        "threads": torch.get_num_threads(),
        "time": (now or datetime.now(UTC)).isoformat(timespec="seconds"),
    }
