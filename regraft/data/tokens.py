"""Tokenised text in a cache, whose key is the digest of text and tokenizer; read by mmap."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from regraft import progress
from regraft.data.sources import Text, digest, documents
from regraft.errors import InputError

_DOCUMENTS_PER_BATCH = 256
_VERSION = 2


class Tokens:
    """Documents as token ids. digest: of text and tokenizer; len(): number of documents."""

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        self.digest: str = meta["digest"]
        self.ends: NDArray[np.int64] = np.load(folder / "ends.npy")
        self._ids = np.empty(0, np.uint32)
        if len(self.ends):  # an empty file cannot be mapped
            self._ids = np.memmap(folder / "ids.bin", dtype=np.uint32, mode="r")

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def total(self) -> int:
        """Number of tokens of all documents."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each document."""
        return np.diff(self.ends, prepend=0)

    def slice(self, document: int, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens [start, stop) of a document; fewer where it ends earlier."""
        begin = int(self.ends[document - 1]) if document else 0
        end = min(begin + stop, int(self.ends[document]))
        return np.asarray(self._ids[begin + start : end], dtype=np.int64)


def tokenise(source: Text, tokenizer: Any, cache: Path, vocabulary: int) -> Tokens:
    """The tokens of a source, read from the cache or written to it first.

    tokenizer: of transformers; it adds its special tokens, and every document ends with the
    end-of-text token. vocabulary: rows of the model's embedding.
    Raises InputError where the source has no text, or a token has no row in the embedding.
    """
    key = xxhash.xxh3_128(
        f"{_VERSION} {digest(source)} {tokenizer_digest(tokenizer)}".encode()
    ).hexdigest()
    folder = cache / key
    if not (folder / "meta.json").is_file():
        _write(folder, key, source, tokenizer)
    tokens = Tokens(folder)
    if not len(tokens):
        raise InputError(f"The source {source.location} has no text; give another.")
    highest = json.loads((folder / "meta.json").read_text())["highest"]
    if highest >= vocabulary:
        raise InputError(
            f"The tokenizer gives token {highest} and the model has {vocabulary} rows; give the "
            "model its own tokenizer."
        )
    return tokens


def default_cache() -> Path:
    """The folder `tokens` in `$REGRAFT_CACHE` or `~/.cache/regraft`."""
    folder = os.environ.get("REGRAFT_CACHE") or Path.home() / ".cache" / "regraft"
    return Path(folder) / "tokens"


def _write(folder: Path, key: str, source: Text, tokenizer: Any) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    end = tokenizer.eos_token_id
    ends, total, highest = [], 0, 0
    texts = documents(source)
    try:
        with (staging / "ids.bin").open("wb") as file, progress.bar("Tokenising", 1) as bar:
            for batch in _batches(texts):
                for ids in tokenizer(batch, verbose=False)["input_ids"]:
                    if end is not None and (not ids or ids[-1] != end):
                        ids = [*ids, end]
                    if not ids:
                        continue
                    array = np.asarray(ids, dtype=np.uint32)
                    array.tofile(file)
                    total += len(array)
                    highest = max(highest, int(array.max()))
                    ends.append(total)
                bar.advance(0, text=f"{total:,} tokens")
        np.save(staging / "ends.npy", np.asarray(ends, dtype=np.int64))
        (staging / "meta.json").write_text(json.dumps({"digest": key, "highest": highest}))
        try:
            staging.rename(folder)
        except OSError:
            if not (folder / "meta.json").is_file():  # else another process has written it
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(texts, _DOCUMENTS_PER_BATCH)):
        yield batch


def tokenizer_digest(tokenizer: Any) -> str:
    """Hash of what determines a tokenizer's output: its serialisation, or its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())
    return xxhash.xxh3_128(f"{text} {tokenizer.eos_token_id}".encode()).hexdigest()
