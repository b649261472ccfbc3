"""Token counts of documents, as `regraft train` counts them: with the tokenizer's special tokens
and an end-of-text token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from regraft.data.build.document import Document
from regraft.data.tokens import tokenizer_digest
from regraft.errors import InputError

BYTES = "bytes"  # the tokenizer for which every byte of UTF-8 is a token
_BATCH = 64  # documents
_BATCH_CHARACTERS = 4 << 20


class Counter(Protocol):
    """Counts tokens. digest: of the tokenizer; equal for tokenizers that give the same tokens.
    special: tokens of a document that are not of its text."""

    digest: str
    special: int

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as a document of its own."""
        ...

    def ends(self, text: str) -> NDArray[np.int64]:
        """For every token of the text, special ones left out, the number of characters up to its
        end."""
        ...


class ByteCounter:
    """Counts bytes of UTF-8: needs no tokenizer, and gives the same figures for every model."""

    digest = xxhash.xxh3_128(b"bytes").hexdigest()
    special = 0

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(text) if text.isascii() else len(text.encode()) for text in texts]

    def ends(self, text: str) -> NDArray[np.int64]:
        if text.isascii():
            return np.arange(1, len(text) + 1, dtype=np.int64)
        data = np.frombuffer(text.encode(), dtype=np.uint8)
        return np.cumsum((data & 0xC0) != 0x80, dtype=np.int64)


class TokenizerCounter:
    """Counts tokens of a fast tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.digest = tokenizer_digest(tokenizer)
        self.special = self.lengths([""])[0]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return [
            len(ids) + (end is not None and (not ids or ids[-1] != end))
            for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]
        ]

    def ends(self, text: str) -> NDArray[np.int64]:
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return np.asarray([end for _, end in encoded["offset_mapping"]], dtype=np.int64)


def open_counter(name: str) -> Counter:
    """The counter for a recipe's tokenizer: 'bytes', or a folder or Hub id of a model.

    Raises InputError where there is no fast tokenizer.
    """
    if name == BYTES:
        return ByteCounter()
    from regraft.checkpoint.hf.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(name)
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{name} has no fast tokenizer (tokenizer.json); give another model.")
    return TokenizerCounter(tokenizer)


def count_tokens(documents: Iterable[Document], counter: Counter) -> Iterator[Document]:
    """The documents, with `tokens` where they are not known yet. It reads a few ahead."""
    source = iter(documents)
    while batch := _batch(source):
        unknown = [document.text for document in batch if document.tokens is None]
        lengths = iter(counter.lengths(unknown) if unknown else [])
        for document in batch:
            if document.tokens is None:
                document = replace(document, tokens=next(lengths))
            yield document


def _batch(source: Iterator[Document]) -> list[Document]:
    batch, characters = [], 0
    for document in islice(source, _BATCH):
        batch.append(document)
        characters += len(document.text)
        if characters > _BATCH_CHARACTERS:
            break
    return batch
