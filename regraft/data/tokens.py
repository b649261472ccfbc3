"""Tokenised text in a cache, whose key is the digest of text and tokenizer; read by mmap.

ids.bin       uint32, the tokens of all documents
ends.npy      int64, the token after each document
learned.bin   of conversations: a byte a token, whether it is learned
cuts.npy      of conversations: int64, the tokens at which a conversation may be cut
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from regraft import progress
from regraft.data.chat.records import COLUMNS, Conversation, read_conversation
from regraft.data.chat.template import ChatTemplate, Encoded
from regraft.data.sources import Text, digest, documents, records
from regraft.errors import InputError

_DOCUMENTS_PER_BATCH = 256
_CHARACTERS_PER_BATCH = 2**20  # of conversations: a token and its place take 200 bytes
_VERSION = 4


@dataclass
class ChatCounts:
    """Of the conversations of a source. learned: tokens to be learned; skipped: conversations
    without an answer of the assistant; shortened: those that ended with another turn, which is left
    out."""

    learned: int = 0
    skipped: int = 0
    shortened: int = 0


class Tokens:
    """Documents as token ids. digest: of text and tokenizer; highest: the largest id; len():
    number of documents; chat: counts of conversations, which have tokens that are not learned, and
    None for text."""

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        self.digest: str = meta["digest"]
        self.highest: int = meta["highest"]
        self.ends: NDArray[np.int64] = np.load(folder / "ends.npy")
        self._ids = np.empty(0, np.uint32)
        if len(self.ends):  # an empty file cannot be mapped
            self._ids = np.memmap(folder / "ids.bin", dtype=np.uint32, mode="r")
        self.chat = None if meta["chat"] is None else ChatCounts(**meta["chat"])
        self._learned, self._cuts = np.empty(0, np.bool_), np.empty(0, np.int64)
        if self.chat is not None:
            self._cuts = np.load(folder / "cuts.npy")
            if len(self.ends):
                self._learned = np.memmap(folder / "learned.bin", dtype=np.bool_, mode="r")

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

    def learned(self, document: int, start: int, stop: int) -> NDArray[np.bool_]:
        """Whether each of the tokens of `slice` is to be learned: all tokens of text."""
        begin = int(self.ends[document - 1]) if document else 0
        end = min(begin + stop, int(self.ends[document]))
        if self.chat is None:
            return np.ones(max(0, end - begin - start), np.bool_)
        return np.asarray(self._learned[begin + start : end])

    def cuts(self, document: int) -> NDArray[np.int64]:
        """Tokens of a conversation at which another exchange begins; none of text."""
        begin = int(self.ends[document - 1]) if document else 0
        first, last = np.searchsorted(self._cuts, (begin, int(self.ends[document])))
        return self._cuts[first:last] - begin


def tokenise(source: Text, tokenizer: Any, cache: Path, vocabulary: int) -> Tokens:
    """The tokens of a source, read from the cache or written to it first.

    tokenizer: of transformers; it adds its special tokens, and every document ends with the
    end-of-text token. vocabulary: rows of the model's embedding.
    Raises InputError where the source has no text, or a token has no row in the embedding.
    """
    template = ChatTemplate(tokenizer, source.loss_on) if source.chat else None
    identity = "" if template is None else template.identity
    key = xxhash.xxh3_128(
        f"{_VERSION} {digest(source)} {tokenizer_digest(tokenizer)} {identity}".encode()
    ).hexdigest()
    folder = cache / key
    if not (folder / "meta.json").is_file():
        _write(folder, key, source, tokenizer, template)
    tokens = Tokens(folder)
    counts = tokens.chat or ChatCounts()
    if not len(tokens) and not counts.skipped:
        raise InputError(f"The source {source.location} has no text; give another.")
    if tokens.chat is not None and not counts.learned:
        raise InputError(
            f"The source {source.location} has nothing to learn: no assistant's turn in "
            f"{counts.skipped + len(tokens):,} conversations; give others, or say loss_on: all."
        )
    _warn(source, counts, len(tokens))
    if tokens.highest >= vocabulary:
        raise InputError(
            f"The tokenizer gives token {tokens.highest} and the model has {vocabulary} rows; give "
            "the model its own tokenizer."
        )
    return tokens


def default_cache() -> Path:
    """The folder `tokens` in `$REGRAFT_CACHE` or `~/.cache/regraft`."""
    folder = os.environ.get("REGRAFT_CACHE") or Path.home() / ".cache" / "regraft"
    return Path(folder) / "tokens"


def _write(
    folder: Path, key: str, source: Text, tokenizer: Any, template: ChatTemplate | None
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    ends, cuts, total, highest, counts = [], [], 0, 0, ChatCounts()
    if template is None:
        encoded = _encode_text(source, tokenizer)
    else:
        encoded = _encode_chat(source, template, counts)
    try:
        with ExitStack() as stack:
            bar = stack.enter_context(progress.bar("Tokenising", 1))
            file = stack.enter_context((staging / "ids.bin").open("wb"))
            learned = None
            if template is not None:
                learned = stack.enter_context((staging / "learned.bin").open("wb"))
            for batch in encoded:
                for document in batch:
                    if not document.ids:
                        continue
                    array = np.asarray(document.ids, dtype=np.uint32)
                    array.tofile(file)
                    if learned is not None:
                        document.learned.tofile(learned)
                        counts.learned += int(document.learned.sum())
                        cuts += [total + cut for cut in document.cuts]
                    total += len(array)
                    highest = max(highest, int(array.max()))
                    ends.append(total)
                bar.advance(0, text=f"{total:,} tokens")
        np.save(staging / "ends.npy", np.asarray(ends, dtype=np.int64))
        if template is not None:
            np.save(staging / "cuts.npy", np.asarray(cuts, dtype=np.int64))
        chat = None if template is None else asdict(counts)
        meta = {"digest": key, "highest": highest, "chat": chat}
        (staging / "meta.json").write_text(json.dumps(meta))
        try:
            staging.rename(folder)
        except OSError:
            if not (folder / "meta.json").is_file():  # else another process has written it
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _encode_text(source: Text, tokenizer: Any) -> Iterator[list[Encoded]]:
    """Batches of documents, each of which ends with the end-of-text token."""
    end, texts = tokenizer.eos_token_id, documents(source)
    while batch := list(islice(texts, _DOCUMENTS_PER_BATCH)):
        result = []
        for ids in tokenizer(batch, verbose=False)["input_ids"]:
            if end is not None and (not ids or ids[-1] != end):
                ids = [*ids, end]
            result.append(Encoded(ids, np.empty(0, np.bool_), []))
        yield result


def _encode_chat(
    source: Text, template: ChatTemplate, counts: ChatCounts
) -> Iterator[list[Encoded]]:
    """Batches of conversations, as the template ends them; fills `counts`."""

    def usable() -> Iterator[Conversation]:
        columns = [*COLUMNS, *([source.field] if source.field else [])]
        for where, record in records(source, columns):
            conversation = read_conversation(record, where, source.field)
            if source.loss_on != "all":
                answered = conversation.answered()
                counts.shortened += 0 < len(answered.messages) < len(conversation.messages)
                conversation = answered
            if conversation.messages:
                yield conversation
            else:
                counts.skipped += 1

    batch, size = [], 0
    for conversation in usable():
        batch.append(conversation)
        size += sum(len(message["content"]) for message in conversation.messages)
        if len(batch) == _DOCUMENTS_PER_BATCH or size > _CHARACTERS_PER_BATCH:
            yield template.encode(batch)
            batch, size = [], 0
    yield template.encode(batch)


def _warn(source: Text, counts: ChatCounts, used: int) -> None:
    """Warn of conversations that are not used whole."""
    if counts.skipped:
        missing = "messages" if source.loss_on == "all" else "assistant's turn"
        progress.warn(
            f"{source.location}: {counts.skipped:,} of {counts.skipped + used:,} conversations "
            f"have no {missing} and are left out."
        )
    if counts.shortened:
        progress.warn(
            f"{source.location}: {counts.shortened:,} of {used:,} conversations do not end with "
            "the assistant; their last turns are left out."
        )


def tokenizer_digest(tokenizer: Any) -> str:
    """Hash of what determines a tokenizer's output: its serialisation, or its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())
    return xxhash.xxh3_128(f"{text} {tokenizer.eos_token_id}".encode()).hexdigest()
