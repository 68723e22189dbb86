"""The text model that a manifest names, loaded, checked and ready for one block at a time."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import ranges_of, read_manifest, require_weights
from .config import TextRun, validated
from .errors import UserError
from .files import sha256
from .networks.gpt import Decoder, DenoisingGPT
from .partition import owner
from .preconditioning import Preconditioning
from .tasks.images import noise_law
from .tasks.language import build, token_logits
from .tensors import load_tensors


def own_layers(tensors: dict[str, Tensor], layers: range) -> dict[str, Tensor]:
    """The weights of some layers, numbered from 0, with everything that is not in a layer."""
    kept = {}
    for name, value in tensors.items():
        if not name.startswith("layers."):
            kept[name] = value
            continue
        _, number, rest = name.split(".", 2)
        if int(number) in layers:
            kept[f"layers.{int(number) - layers.start}.{rest}"] = value
    return kept


class TextModel:
    """All blocks of a language run; block b holds its own layers only.

    Args:
        path: a manifest written by :func:`~diffusionblocks.manifest.assemble`.
        device: where blocks run.
        one_block: keep only the block that runs on the device, and the others on the host.

    Raises:
        UserError: the manifest or a file that it names is missing or damaged.
    """

    def __init__(self, path: Path, device: torch.device, one_block: bool = False):
        self.manifest = read_manifest(path, "language")
        self.run = validated(TextRun, self.manifest["config"], Path(path).name)
        require_weights(self.manifest, path)
        self.facts = self.manifest["language"]
        self.device = device
        self.ranges = ranges_of(self.manifest)
        self.noise = noise_law(self.run.noise)
        self.preconditioning = Preconditioning(self.facts["sigma_data"])
        self.one_block = one_block
        self.blocks: list[Decoder] = []
        for b in self.manifest["blocks"]:
            own = range(*b["layers"])
            network = build(self.run, self.vocabulary, len(own))
            tensors = load_tensors(Path(path).parent / b["file"])
            network.load_state_dict(own_layers(tensors, own))
            self.blocks.append(network.eval().to("cpu" if one_block else device))
        self._active: int | None = None
        self.table: Tensor | None = None
        if self.denoises:
            # What blocks pass on is in this space, so they must agree on it to the last bit.
            tables = [network.table() for network in self.blocks]
            if not all(torch.equal(table, tables[0]) for table in tables):
                raise UserError(
                    f"the blocks of {path} have different token tables and cannot be chained; "
                    "train them with embedding frozen or from_checkpoint"
                )
            self.table = tables[0].detach().to(device)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.facts["vocabulary"]

    @property
    def context_length(self) -> int:
        """Most tokens of a sequence."""
        return self.facts["context_length"]

    @property
    def denoises(self) -> bool:
        """Whether this is a denoiser rather than the end-to-end model."""
        return self.run.method != "end_to_end"

    def check_tokenizer(self, path: Path) -> None:
        """Raises UserError when a tokeniser is not the one that the model was trained with."""
        if (found := sha256(path)) != self.facts["tokenizer_sha256"]:
            raise UserError(
                f"{path} has digest {found[:12]}, but the model was trained with tokeniser "
                f"{self.facts['tokenizer_sha256'][:12]}; point to the data that it was trained on"
            )

    def block(self, b: int) -> Decoder:
        """Block b on the device; with ``one_block`` the one before it leaves first."""
        if self.one_block and self._active != b:
            if self._active is not None:
                self.blocks[self._active].to("cpu")
            self.blocks[b].to(self.device)
            self._active = b
        return self.blocks[b]

    def embed(self, tokens: Tensor) -> Tensor:
        """Clean tokens in the embedding space, [...] → [..., width]."""
        return F.embedding(tokens, self.table)

    def next_token_logits(self, tokens: Tensor) -> Tensor:
        """Of the end-to-end model: [N, T] → [N, T, vocabulary], position i for token i + 1."""
        return self.block(0)(tokens)

    def block_logits(self, b: int, z: Tensor, sigma: Tensor, clean: Tensor) -> Tensor:
        """Logits of block b for whole noisy sequences, see :func:`token_logits`."""
        network: DenoisingGPT = self.block(b)
        return token_logits(network, network, self.preconditioning, z, sigma, clean)

    def denoiser(self, z: Tensor, sigma: Tensor, clean: Tensor) -> Tensor:
        """Logits [N, T, vocabulary]: every sequence goes to the block that owns its σ.

        Args:
            z: noisy tokens [N, T, width].
            sigma: [N].
            clean: clean tokens [N, T, width].
        """
        owners = torch.tensor([owner(self.ranges, s) for s in sigma.tolist()], device=z.device)
        logits = z.new_empty(*z.shape[:2], self.vocabulary)
        for b in owners.unique().tolist():
            mine = owners == b
            logits[mine] = self.block_logits(b, z[mine], sigma[mine], clean[mine])
        return logits
