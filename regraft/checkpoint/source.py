"""A model on disk or on the Hub, read tensor by tensor and never whole in memory.

`Checkpoint.open` takes a local folder or a Hub id `org/name[@revision]`, reads the safetensors
headers and checks them against the files, the index and each other, so that a broken download is
named before any work starts. Tensors are views of a private memory map: cheap to make, given back
with `release`, and unable to change the file. From the Hub only headers (range requests) and small
files are fetched at first; a shard is downloaded when a tensor of it is first read.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import sys
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch

from regraft import progress
from regraft.checkpoint.files import INDEX, Files, is_inside, is_other, read_json
from regraft.checkpoint.find import check_index, find, shards_of
from regraft.checkpoint.header import DTYPE_CODES, TensorInfo, opened, parse_header, unreadable
from regraft.errors import CheckpointError

_SAMPLE_BLOCKS, _SAMPLE_BLOCK = 16, 64
# Without it a private writable map larger than memory is refused by Linux's overcommit heuristic.
# Python exports the constant from 3.13 on.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class Checkpoint:
    """A model's config and tensors, lazily. Use as a context manager, or `close` it.

    name       the folder or Hub id as the user wrote it
    revision   the resolved commit of a Hub id, None for a folder
    config     config.json as it stands on disk
    tensors    by name, in natural order: shards by file name, tensors by offset within the shard
    shards     shard file name -> names of its tensors, in file order
    metadata   the safetensors `__metadata__` of the shards, merged
    """

    def __init__(
        self,
        name: str,
        revision: str | None,
        config: dict[str, Any],
        files: Files,
        headers: dict[str, tuple[list[TensorInfo], dict[str, str]]],
    ) -> None:
        self.name = name
        self.revision = revision
        self.config = config
        self.tensors: dict[str, TensorInfo] = {}
        self.shards: dict[str, list[str]] = {}
        self.metadata: dict[str, str] = {}
        self._files = files
        self._maps: dict[str, mmap.mmap] = {}
        self._fingerprints: dict[bool, str] = {}
        self._tied: bool | None = None
        for shard, (infos, metadata) in headers.items():
            self.shards[shard] = [info.name for info in infos]
            self.metadata.update(metadata)
            for info in infos:
                if info.name in self.tensors:
                    raise CheckpointError(
                        f"Tensor '{info.name}' is stored twice in {name}, in "
                        f"{self.tensors[info.name].shard} and in {shard}; delete the file that "
                        f"does not belong to the model, or add a {INDEX}."
                    )
                self.tensors[info.name] = info

    @classmethod
    def open(cls, source: str | Path) -> Checkpoint:
        """Open a local folder, or the Hub model `org/name[@revision]` if no such path exists.

        Raises CheckpointError for anything that is not a complete safetensors model: the message
        names the file and what to do. Reads headers only.
        """
        name = str(source)
        files = find(name)
        config = read_json(files, "config.json")
        shards, weight_map = shards_of(files)
        headers = {
            shard: parse_header(shard, *head, where=files.where)
            for shard, head in zip(shards, files.heads(shards), strict=True)
        }
        if weight_map is not None:
            check_index(files, weight_map, headers)
        if not any(infos for infos, _ in headers.values()):
            raise CheckpointError(f"{files.where} holds no tensors; download the model again.")
        return cls(name, files.revision, config, files, headers)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the memory maps; each is unmapped when the last tensor that views it is gone."""
        self._maps.clear()

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors, headers not counted."""
        return sum(info.nbytes for info in self.tensors.values())

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as stored: a view of the mapped file, to be treated as read-only.

        A write to it changes a private copy in memory, never the file. Raises CheckpointError for
        an unknown name.
        """
        info = self._info(name)
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=info.dtype)
        mapped = self._map(info.shard)
        if info.offset % info.dtype.itemsize:
            data = bytearray(mapped[info.offset : info.offset + info.nbytes])
            return torch.frombuffer(data, dtype=info.dtype).view(info.shape)
        count = info.nbytes // info.dtype.itemsize
        flat = torch.frombuffer(mapped, dtype=info.dtype, count=count, offset=info.offset)
        return flat.view(info.shape)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of dimension 0, as `tensor` would give them."""
        shape = self._info(name).shape
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise IndexError(f"rows [{start}, {stop}) of '{name}', whose shape is {list(shape)}")
        return self.tensor(name)[start:stop]

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the system; views stay valid and are read again."""
        info = self._info(name)
        mapped = self._maps.get(info.shard)
        if mapped is None or info.nbytes == 0 or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = info.offset - info.offset % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)

    def sample(self, name: str) -> torch.Tensor:
        """1-D, stored dtype, copied: the whole tensor up to 1024 elements, else 16 blocks of 64.

        The blocks lie one in each sixteenth of the tensor, at a place drawn from a generator
        seeded with the element count, so tensors of one size are sampled at the same places.
        """
        info = self._info(name)
        size = info.dtype.itemsize
        if info.nbytes == 0:
            return torch.empty(0, dtype=info.dtype)
        data = bytearray()
        with opened(self.shard_path(info.shard)) as fd:
            for start, stop in sample_blocks(prod(info.shape)):
                data += os.pread(fd, (stop - start) * size, info.offset + start * size)
        return torch.frombuffer(data, dtype=info.dtype)

    def fingerprint(self, *, full: bool = False) -> str:
        """'sampled:<sha256>' over sorted names, shapes, dtypes and samples; cached.

        `full=True` gives 'full:<sha256>' over all bytes instead. Neither depends on how the model
        is cut into shards. Of a Hub model both download the shards they read.
        """
        if full not in self._fingerprints:
            self._fingerprints[full] = self._fingerprint(full)
        return self._fingerprints[full]

    def _fingerprint(self, full: bool) -> str:
        digest = hashlib.sha256()
        with progress.bar(
            f"Hashing {self.name}", self.total_bytes if full else len(self.tensors),
            unit="bytes" if full else "",
        ) as bar:  # fmt: skip
            for name, info in sorted(self.tensors.items()):
                entry = [name, list(info.shape), DTYPE_CODES[info.dtype]]
                digest.update(json.dumps(entry, ensure_ascii=True).encode() + b"\n")
                if full:
                    for chunk in self.chunks(name):
                        digest.update(chunk)
                        bar.advance(len(chunk))
                else:
                    digest.update(self.sample(name).view(torch.uint8).numpy().tobytes())
                    bar.advance()
        return f"{'full' if full else 'sampled'}:{digest.hexdigest()}"

    def chunks(self, name: str, size: int = 1 << 20) -> Iterator[memoryview]:
        """The tensor's bytes in order, in one reused buffer: each chunk is valid until the next.

        Read with pread rather than through the map, so that nothing stays resident.
        """
        info = self._info(name)
        if info.nbytes == 0:
            return
        buffer = memoryview(bytearray(min(size, info.nbytes)))
        with opened(self.shard_path(info.shard)) as fd:
            done = 0
            while done < info.nbytes:
                want = min(len(buffer), info.nbytes - done)
                try:
                    got = os.preadv(fd, [buffer[:want]], info.offset + done)
                except OSError as error:
                    raise unreadable(self.shard_path(info.shard), error) from error
                if got == 0:
                    raise CheckpointError(
                        f"{self.shard_path(info.shard)} became shorter while it was read; let "
                        "nothing else write to it."
                    )
                yield buffer[:got]
                done += got

    def file(self, name: str) -> Path | None:
        """The local path of a file of the model (tokenizer.json, ...), or None if it has none.

        From the Hub the file is downloaded.
        """
        return self._files.path(name) if is_inside(name) and self._files.has(name) else None

    def other_files(self) -> list[str]:
        """Sorted relative names of what a copy of the model needs beside weights and config.json.

        That is the tokenizer, chat template, generation config, licence and custom code; not
        README, hidden files, weights in other formats and their folders, or records and figures
        of how this one came about.
        """
        return sorted(name for name in self._files.names() if is_other(name))

    def fetch(self, names: Iterable[str] | None = None) -> None:
        """Download the shards that hold these tensors (None: all); nothing to do for a folder."""
        wanted = {self._info(name).shard for name in (self.tensors if names is None else names)}
        self._files.fetch([shard for shard in self.shards if shard in wanted])

    def shard_path(self, shard: str) -> Path:
        """The shard file on disk, downloaded if need be."""
        return self._files.path(shard)

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding.

        True if the config says so (`tie_word_embeddings`, at the top or in `text_config`; where it
        is silent, the default of the model type in transformers) and no separate head is stored,
        or one with the embedding's very bytes.
        """
        if self._tied is None:
            self._tied = _ties(self.config) and self._one_matrix()
        return self._tied

    def _one_matrix(self) -> bool:
        """Whether no head is stored, or one equal to the embedding."""
        head = next((n for n in self.tensors if n.endswith("lm_head.weight")), None)
        embedding = next(
            (n for n in self.tensors if n.endswith(("embed_tokens.weight", "wte.weight"))), None
        )
        return head is None or (embedding is not None and self._same(head, embedding))

    def _same(self, one: str, other: str) -> bool:
        a, b = self._info(one), self._info(other)
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return False
        same = torch.equal(self.sample(one).view(torch.uint8), self.sample(other).view(torch.uint8))
        if same:
            views = [self.tensor(name).reshape(-1).view(torch.uint8) for name in (one, other)]
            same = torch.equal(*views)
            self.release(one)
            self.release(other)
        return same

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError(f"{self.name} has no tensor '{name}'.")
        return self.tensors[name]

    def _map(self, shard: str) -> mmap.mmap:
        if shard not in self._maps:
            path = self.shard_path(shard)
            with opened(path) as fd:
                try:
                    # Private and writable: torch takes the buffer without a warning, and a write
                    # lands in memory instead of the file.
                    self._maps[shard] = mmap.mmap(
                        fd,
                        0,
                        flags=mmap.MAP_PRIVATE | _NORESERVE,
                        prot=mmap.PROT_READ | mmap.PROT_WRITE,
                    )
                except OSError as error:
                    raise CheckpointError(
                        f"{path} cannot be mapped into memory ({error.strerror}); raise the limit "
                        "on virtual memory (ulimit -v) or use a model saved in smaller shards."
                    ) from error
        return self._maps[shard]


def _ties(config: dict[str, Any]) -> bool:
    """`tie_word_embeddings` of a config, or the model type's default in transformers."""
    text = config.get("text_config")
    for level in (config, text if isinstance(text, dict) else {}):
        if isinstance(level.get("tie_word_embeddings"), bool):
            return bool(level["tie_word_embeddings"])
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        return False
    return bool(getattr(CONFIG_MAPPING[kind](), "tie_word_embeddings", False))


def sample_blocks(count: int) -> list[tuple[int, int]]:
    """Element ranges [start, stop) that `sample` reads from a tensor of `count` elements."""
    if count <= _SAMPLE_BLOCKS * _SAMPLE_BLOCK:
        return [(0, count)]
    draw = random.Random(count)
    blocks = []
    for i in range(_SAMPLE_BLOCKS):
        first = i * count // _SAMPLE_BLOCKS
        last = (i + 1) * count // _SAMPLE_BLOCKS - _SAMPLE_BLOCK
        start = first + int(draw.random() * (last - first + 1))
        blocks.append((start, start + _SAMPLE_BLOCK))
    return blocks
