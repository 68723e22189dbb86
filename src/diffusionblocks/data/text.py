"""Text: tokenised once into checksummed, memory-mapped files, one a split.

A split is one long row of tokens: whole documents, each followed by the end token. A document is
in one split only. Besides train, validation and test there is a ``judge`` split, which no
compared model sees: the judge of generated text is trained on it.

To add a data set write one loader that returns :class:`Corpus` and name it in :data:`LOADERS`
(and in ``TextDataConfig``).
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import LanguageConfig, TextDataConfig
from ..errors import UserError
from ..files import atomic_path, sha256, write_json
from ..records import TEXT, read_record
from .tokenizers import Tokenizer, make_tokenizer, save_tokenizer

SPLITS = ("train", "judge", "validation", "test")
#: Share of the characters of a corpus that comes without splits.
SHARES = {"train": 0.6, "judge": 0.2, "validation": 0.1, "test": 0.1}
#: Where a hub set brings no validation split: every n-th training document is one.
EVERY = 200
#: Characters after which a tokeniser that is trained has read enough.
TOKENIZER_CHARACTERS = 20_000_000


@dataclass(frozen=True)
class Corpus:
    """A text data set.

    Attributes:
        documents: split → a function that starts to read its documents from the beginning.
        note: what it is, for tables.
        digest: SHA-256 of the whole text, where it is embedded in a package.
    """

    documents: dict[str, Callable[[], Iterable[str]]]
    note: str
    digest: str = ""


def split_by_characters(documents: dict[str, str]) -> dict[str, list[str]]:
    """Whole documents to splits, so that each has about its share of the characters.

    Documents come in an order that their names decide; each goes to the split that is furthest
    below its share.
    """
    total = sum(map(len, documents.values()))
    taken = dict.fromkeys(SPLITS, 0)
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for name in sorted(documents, key=lambda n: hashlib.sha256(n.encode()).digest()):
        text = documents[name]
        needy = min(SPLITS, key=lambda s: (taken[s] + len(text) / 2) / SHARES[s] / total)
        splits[needy].append(text)
        taken[needy] += len(text)
    return splits


def load_pydoc_topics(config: TextDataConfig) -> Corpus:
    """The language reference embedded in CPython; differs between Python versions."""
    from pydoc_data.topics import topics

    whole = "\n".join(f"{name}\n{topics[name]}" for name in sorted(topics))
    splits = split_by_characters(topics)
    return Corpus(
        {name: (lambda texts=texts: texts) for name, texts in splits.items()},
        "CPython's pydoc_data.topics, whole topics split by a hash of their names",
        hashlib.sha256(whole.encode()).hexdigest(),
    )


def _parquet_texts(file: Path, config: TextDataConfig) -> Iterator[str]:
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(file)
        if config.column not in table.schema_arrow.names:
            raise UserError(
                f"{file} has columns {table.schema_arrow.names}; expected {config.column!r}: "
                "correct data.column"
            )
        batches = table.iter_batches(batch_size=16, columns=[config.column])
        texts = (text.as_py() for batch in batches for text in batch.column(0))
        yield from itertools.islice((t for t in texts if t), config.max_documents)
    except OSError as error:
        raise UserError(f"cannot read {file} ({error}); fetch it again") from None
    except ValueError as error:  # pyarrow's errors about a damaged file
        raise UserError(f"{file} is not a whole parquet file ({error}); fetch it again") from None


def _kept(texts: Iterable[str], judge: bool, every: int) -> Iterator[str]:
    """Every n-th document is the judge's, the others are for training."""
    return (t for i, t in enumerate(texts) if (i % every == every - 1) == judge)


def load_parquet(config: TextDataConfig) -> Corpus:
    """Local train, validation and test .parquet; a tenth of the training documents judge.

    Raises:
        UserError: a file is missing, damaged, or lacks the column.
    """
    files = {s: Path(config.path or "") / f"{s}.parquet" for s in ("train", "validation", "test")}
    for file in files.values():
        if not file.is_file():
            raise UserError(
                f"data.path: {file} does not exist; expected train.parquet, validation.parquet "
                f"and test.parquet in {config.path}: correct data.path"
            )
    return Corpus(
        {
            "train": lambda: _kept(_parquet_texts(files["train"], config), False, 10),
            "judge": lambda: _kept(_parquet_texts(files["train"], config), True, 10),
            "validation": lambda: _parquet_texts(files["validation"], config),
            "test": lambda: _parquet_texts(files["test"], config),
        },
        "local parquet",
    )


def _commit(hub: str, config: TextDataConfig) -> str:
    """The commit of a hub set to read: the pinned one, or what is newest now.

    Every split and the tokeniser start a stream of their own; one commit keeps them apart.
    """
    if config.revision is not None:
        return config.revision
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(hub).sha
    except Exception as error:  # no network, no such set: many kinds
        raise _unreadable(hub, error) from None


def _unreadable(hub: str, error: Exception) -> UserError:
    reason = " ".join(str(error.__cause__ or error).split())[:200]
    return UserError(f"cannot read {hub} from the hub ({reason}); go online or set data.name")


def _stream(hub: str, commit: str, split: str, config: TextDataConfig) -> Iterator[str]:
    import datasets

    try:
        rows = datasets.load_dataset(hub, split=split, streaming=True, revision=commit)
        texts = (row[config.column] for row in rows)
        yield from itertools.islice((t for t in texts if t), config.max_documents)
    except Exception as error:  # `datasets` raises many kinds
        raise _unreadable(hub, error) from None


def _dealt(texts: Iterable[str], split: str, held_out: tuple[str, ...]) -> Iterator[str]:
    """Deal a stream's documents: of every EVERY the last ones go to the held-out splits."""
    for i, text in enumerate(texts):
        place = EVERY - 1 - i % EVERY
        if split == (held_out[place] if place < len(held_out) else "train"):
            yield text


def _hub_corpus(hub: str, held_out: tuple[str, ...], config: TextDataConfig) -> Corpus:
    """A hub set: some splits are dealt out of its train, the others are its own."""
    commit = _commit(hub, config)

    def documents(split: str) -> Iterable[str]:
        if split != "train" and split not in held_out:
            return _stream(hub, commit, split, config)
        return _dealt(_stream(hub, commit, "train", config), split, held_out)

    return Corpus(
        {split: partial(documents, split) for split in SPLITS}, f"hub {hub} at {commit}, streamed"
    )


def load_lm1b(config: TextDataConfig) -> Corpus:
    """The One Billion Word benchmark, streamed; validation and judge dealt out of its train."""
    return _hub_corpus("dvruette/lm1b", ("judge", "validation"), config)


def load_openwebtext(config: TextDataConfig) -> Corpus:
    """OpenWebText, streamed; it has one split, out of which all held-out ones are dealt."""
    return _hub_corpus("Skylion007/openwebtext", ("judge", "validation", "test"), config)


LOADERS: dict[str, Callable[[TextDataConfig], Corpus]] = {
    "pydoc_topics": load_pydoc_topics,
    "parquet": load_parquet,
    "lm1b": load_lm1b,
    "openwebtext": load_openwebtext,
}


def _beginning(texts: Iterable[str]) -> Iterator[str]:
    read = 0
    for text in texts:
        yield text
        read += len(text)
        if read >= TOKENIZER_CHARACTERS:
            return


def _write_split(path: Path, texts: Iterable[str], tokenizer: Tokenizer, dtype: str) -> dict:
    """Tokens of one split, document by document, so that no split needs to fit in memory."""
    counts = {"tokens": 0, "characters": 0, "documents": 0}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for text in texts:
            tokens = [*tokenizer.encode(text), tokenizer.end]
            file.write(np.asarray(tokens, dtype).tobytes())
            counts["tokens"] += len(tokens)
            counts["characters"] += len(text)
            counts["documents"] += 1
    return counts | {"sha256": sha256(path)}


def prepare_text(config: LanguageConfig, folder: Path) -> dict:
    """Tokenise a data set into ``folder``; text.json, with the digests, is written last.

    Returns:
        What text.json holds.

    Raises:
        UserError: the source cannot be read, or a split is shorter than a context.
    """
    corpus = LOADERS[config.data.name](config.data)
    tokenizer = make_tokenizer(config.tokenizer, _beginning(corpus.documents["train"]()))
    digest = save_tokenizer(folder / "tokenizer.json", tokenizer)
    dtype = "<u2" if tokenizer.vocabulary <= 2**16 else "<u4"
    splits = {}
    for split in SPLITS:
        path = folder / f"{split}.bin"
        splits[split] = _write_split(path, corpus.documents[split](), tokenizer, dtype)
        if (found := splits[split]["tokens"]) < config.network.context_length:
            raise UserError(
                f"the {split} text has {found} tokens, fewer than one context of "
                f"{config.network.context_length}; add text or lower network.context_length"
            )
    description = {
        "name": config.data.name,
        "path": None if config.data.path is None else str(config.data.path),
        "note": corpus.note,
        "text_sha256": corpus.digest,
        "tokenizer": config.tokenizer.kind,
        "tokenizer_sha256": digest,
        "vocabulary": tokenizer.vocabulary,
        "end": tokenizer.end,
        "dtype": dtype,
        "splits": splits,
    }
    write_json(folder / "text.json", description)
    return description


@dataclass(frozen=True)
class TextSplit:
    """One split, memory-mapped.

    Attributes:
        tokens: the packed tokens as an array, mapped read-only.
        vocabulary: number of tokens that exist.
        tokenizer_digest: of the tokeniser that made them.
        characters_per_token: of this split, to turn nats a token into bits a character.
    """

    tokens: np.ndarray
    vocabulary: int
    tokenizer_digest: str
    characters_per_token: float

    def count(self, length: int) -> int:
        """How many windows of that length fit, side by side."""
        return len(self.tokens) // length

    def windows(self, index: Tensor, length: int) -> Tensor:
        """Windows of a length by number, int64 [len(index), length].

        Raises:
            UserError: a token that the vocabulary does not have.
        """
        rows = [self.tokens[i * length : (i + 1) * length] for i in index.tolist()]
        tokens = np.stack(rows).astype(np.int64)
        if (highest := tokens.max()) >= self.vocabulary:
            raise UserError(
                f"found token {highest}; expected fewer than the {self.vocabulary} of "
                "the vocabulary: prepare the text again"
            )
        return torch.from_numpy(tokens)


def load_text(folder: Path, split: str, length: int) -> TextSplit:
    """Open one split of a prepared text and check it against its digest.

    Args:
        length: of the windows that will be read; at least one must fit.

    Raises:
        UserError: the file is missing, truncated, altered, or shorter than a window.
    """
    folder = Path(folder)
    description = read_record(folder / "text.json", TEXT)
    path, facts = folder / f"{split}.bin", description["splits"][split]
    size = facts["tokens"] * np.dtype(description["dtype"]).itemsize
    if not path.is_file() or path.stat().st_size != size or sha256(path) != facts["sha256"]:
        raise UserError(
            f"{path} is missing or differs from its digest in text.json; "
            f"delete {folder} and run the same command again"
        )
    if facts["tokens"] < length:
        raise UserError(
            f"{path} has {facts['tokens']} tokens, fewer than one context of {length}; "
            "lower network.context_length"
        )
    return TextSplit(
        np.memmap(path, dtype=description["dtype"], mode="r"),
        description["vocabulary"],
        description["tokenizer_sha256"],
        facts["characters"] / facts["tokens"],
    )


def unigram(split: TextSplit) -> Tensor:
    """Relative frequency of every token, float64 [vocabulary]."""
    counts = np.zeros(split.vocabulary, np.int64)
    for first in range(0, len(split.tokens), 1 << 24):
        counts += np.bincount(split.tokens[first : first + (1 << 24)], minlength=split.vocabulary)
    return torch.from_numpy(counts / counts.sum())
