"""From text to token numbers and back: characters, trained byte-level BPE, or one of the hub's.

A tokeniser is one JSON file beside the data; its digest is part of every checkpoint's
description, so text of one tokeniser never meets a network of another.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ..config import TokenizerConfig
from ..errors import UserError
from ..files import read_json, sha256, write_text
from ..hub import pinned

#: What marks the end of a document, by the habits of well-known tokenisers.
END_NAMES = ("<|endoftext|>", "</s>", "<|end_of_text|>", "[SEP]")
#: Stand for the end of a document and for a character that the training text has not.
END, UNKNOWN = "␄", "\ufffd"


class Tokenizer(Protocol):
    """What the rest of the suite needs of a tokeniser."""

    vocabulary: int
    end: int

    def encode(self, text: str, strict: bool = False) -> list[int]: ...  # noqa: D102
    def decode(self, tokens: Iterable[int]) -> str: ...  # noqa: D102


class Characters:
    """One token a character; 0 ends a document, 1 stands for characters never seen.

    Args:
        alphabet: the characters of tokens 2, 3, …
    """

    end, unknown = 0, 1

    def __init__(self, alphabet: str):
        self.alphabet = alphabet
        self.vocabulary = len(alphabet) + 2
        self._numbers = {c: i + 2 for i, c in enumerate(alphabet)}
        self._names = [END, UNKNOWN, *alphabet]

    def encode(self, text: str, strict: bool = False) -> list[int]:
        """Token numbers of a text.

        Args:
            strict: refuse characters outside the vocabulary instead of marking them unknown.

        Raises:
            UserError: strict, and there is such a character.
        """
        if strict and (strange := sorted(set(text) - self._numbers.keys())):
            raise UserError(
                f"character {strange[0]!r} is outside the vocabulary of {self.vocabulary} tokens; "
                "expected characters of the training text: replace it"
            )
        return [self._numbers.get(c, self.unknown) for c in text]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token numbers.

        Raises:
            UserError: a number outside the vocabulary.
        """
        return "".join(self._names[t] for t in in_vocabulary(tokens, self.vocabulary))

    def to_json(self) -> str:
        """What :func:`load_tokenizer` reads."""
        return json.dumps({"kind": "characters", "alphabet": self.alphabet}) + "\n"


class Pieces:
    """A tokeniser of the ``tokenizers`` package.

    Args:
        model: a ``tokenizers.Tokenizer``.
        end: the number of the token that ends a document.
    """

    def __init__(self, model, end: int):
        self._model = model
        self.end = end
        self.vocabulary = model.get_vocab_size()

    def encode(self, text: str, strict: bool = False) -> list[int]:
        """Token numbers of a text; bytes have no outside, so strict changes nothing."""
        return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token numbers; raises UserError for a number outside the vocabulary."""
        known = in_vocabulary(tokens, self.vocabulary)
        return self._model.decode(known, skip_special_tokens=False)

    def to_json(self) -> str:
        """What :func:`load_tokenizer` reads."""
        whole = json.loads(self._model.to_str())
        return json.dumps({"kind": "pieces", "end": self.end, "model": whole}) + "\n"


def in_vocabulary(tokens: Iterable[int], vocabulary: int) -> list[int]:
    """The tokens as a list, checked.

    Raises:
        UserError: a token outside 0 … vocabulary − 1.
    """
    tokens = [int(t) for t in tokens]
    for t in tokens:
        if not 0 <= t < vocabulary:
            raise UserError(
                f"token {t} is outside the vocabulary of {vocabulary}; expected 0 to "
                f"{vocabulary - 1}: use the tokeniser that the text was made with"
            )
    return tokens


def train_characters(texts: Iterable[str]) -> Characters:
    """Every character of the training texts, in code order."""
    alphabet: set[str] = set()
    for text in texts:
        alphabet.update(text)
    return Characters("".join(sorted(alphabet - {END, UNKNOWN})))


def train_bpe(texts: Iterable[str], vocabulary: int) -> Pieces:
    """Byte-level BPE (Radford et al. 2019) over the training texts, with one end token."""
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_NAMES[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return Pieces(model, model.token_to_id(END_NAMES[0]))


def hub_tokenizer(name: str) -> Pieces:
    """A tokeniser of the hub (owner/name@commit), or a local tokenizer.json.

    Raises:
        UserError: it cannot be had, or marks no end of a document.
    """
    from tokenizers import Tokenizer as Model

    try:
        source, commit = pinned(name)
        if commit is None:
            model = Model.from_file(source)
        else:
            model = Model.from_pretrained(source, revision=commit)
    except Exception as error:  # `tokenizers` raises bare Exceptions
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot load tokeniser {name} ({reason}); correct tokenizer.name or go online"
        ) from None
    ends = [e for e in map(model.token_to_id, END_NAMES) if e is not None]
    if not ends:
        raise UserError(
            f"tokeniser {name} has none of the tokens {END_NAMES}; choose one that has, "
            "since documents are packed with an end between them"
        )
    return Pieces(model, ends[0])


def make_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """The tokeniser that a configuration asks for, trained on the texts where it is trained."""
    if config.kind == "characters":
        return train_characters(texts)
    if config.kind == "bpe":
        return train_bpe(texts, config.vocabulary)
    return hub_tokenizer(config.name)


def save_tokenizer(path: Path, tokenizer: Tokenizer) -> str:
    """Write a tokeniser whole; returns its digest."""
    write_text(path, tokenizer.to_json())
    return sha256(path)


def load_tokenizer(path: Path, digest: str | None = None) -> Tokenizer:
    """Read a tokeniser.

    Args:
        digest: of the tokeniser that is expected, as a checkpoint names it.

    Raises:
        UserError: the file is missing, not a tokeniser, or another one.
    """
    stored = read_json(path)
    if digest is not None and (found := sha256(path)) != digest:
        raise UserError(
            f"{path} has digest {found[:12]}, but the checkpoint was trained with tokeniser "
            f"{digest[:12]}; point to the data that it was trained on"
        )
    try:
        if stored["kind"] == "characters":
            return Characters(stored["alphabet"])
        from tokenizers import Tokenizer as Model

        return Pieces(Model.from_str(json.dumps(stored["model"])), stored["end"])
    except (KeyError, TypeError):
        raise UserError(
            f"{path} is not a tokeniser; expected tokenizer.json: run `language data` again"
        ) from None
