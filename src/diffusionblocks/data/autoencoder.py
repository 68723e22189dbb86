"""Between pixels and latents: `AutoencoderKL` of ``diffusers``, imported when it is needed."""

import hashlib

import torch
from torch import Tensor

from ..errors import UserError
from ..hub import pinned
from .images import to_uint8, to_unit

#: Images decoded at once: a decoder's activations at 256×256 take some 100 MB an image.
DECODE_BATCH = 16


def load_autoencoder(name: str, device: torch.device) -> torch.nn.Module:
    """A frozen AutoencoderKL from a folder, or of the hub by owner/name@commit.

    Raises:
        UserError: the package ``diffusers`` or the weights are missing.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise UserError(
            "latents need the package diffusers, which is not installed; "
            "run make, or pip install 'diffusionblocks[latents]'"
        ) from None
    try:
        # Plain loading: the default way wants another package.
        source, commit = pinned(name)
        at = {} if commit is None else {"revision": commit}
        model = AutoencoderKL.from_pretrained(
            source, low_cpu_mem_usage=False, use_safetensors=True, **at
        )
    except Exception as error:  # no network, no folder, other weights: many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"data.autoencoder: cannot load {name} ({reason}); name a folder or a hub model that "
            "holds an AutoencoderKL as safetensors"
        ) from None
    return model.eval().requires_grad_(False).to(device)


def weights_digest(autoencoder: torch.nn.Module) -> str:
    """SHA-256 of all weights by name: what a cache of latents belongs to."""
    found = hashlib.sha256()
    for name, value in sorted(autoencoder.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()


@torch.inference_mode()
def encode(autoencoder: torch.nn.Module, images: Tensor) -> Tensor:
    """Images uint8 [N, 3, H, W] → mean and deviation of their latents [N, 2C, H/8, W/8]."""
    device = next(autoencoder.parameters()).device
    found = autoencoder.encode(to_unit(images.to(device))).latent_dist
    return torch.cat([found.mean, found.std], dim=1)


@torch.inference_mode()
def decode(autoencoder: torch.nn.Module, latents: Tensor) -> Tensor:
    """Latents [N, C, H, W] → images uint8 [N, 3, 8H, 8W]."""
    parts = [autoencoder.decode(part).sample for part in latents.split(DECODE_BATCH)]
    return to_uint8(torch.cat(parts))
