"""A model on disk or on the Hub, read tensor by tensor and never whole in memory.

`Checkpoint.open` takes a local folder or a Hub id `org/name[@revision]`, reads the safetensors
headers and checks them against the files, the index and each other, so that a broken download is
named before any work starts. Tensors are read into new memory, whole or in part, never through a
memory map: a file that is truncated meanwhile is an error and not the end of the process, and a
change to a tensor reaches no other reader. From the Hub only headers (range requests) and small
files are fetched at first; a shard is downloaded when one of its tensors is first read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from threading import Lock

import torch

from regraft import progress
from regraft.checkpoint.config import ties_head
from regraft.checkpoint.finite import is_finite
from regraft.checkpoint.read.counts import check_counts
from regraft.checkpoint.read.files import INDEX, Files, belongs_in_copy, is_inside, read_json
from regraft.checkpoint.read.find import check_index, find_files, shards_of
from regraft.checkpoint.read.header import DTYPE_CODES, TensorInfo, parse_header
from regraft.checkpoint.read.sample import sample_blocks
from regraft.checkpoint.read.tensor_file import FileReader
from regraft.errors import CheckpointError
from regraft.input_files import JsonObject

_BLOCK = 1 << 22  # elements read at a time, where a tensor is read in parts


class Checkpoint:
    """A model's config and tensors, read when they are needed. A context manager, or `close` it.

    name       the folder or Hub id as the user wrote it
    revision   the resolved commit of a Hub id, None for a folder
    config     config.json as stored
    tensors    by name, in natural order: shards by file name, tensors by offset within the shard
    shards     shard file name -> names of its tensors, in file order
    metadata   the safetensors `__metadata__` of the shards, merged
    """

    def __init__(
        self,
        name: str,
        revision: str | None,
        config: JsonObject,
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
        self._readers: dict[str, FileReader] = {}
        self._opening = Lock()
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
        files = find_files(name)
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
        check_counts(config, sum(len(infos) for infos, _ in headers.values()), files.where)
        return cls(name, files.revision, config, files, headers)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the shard files; reading a tensor later opens its file again."""
        with self._opening:
            for reader in self._readers.values():
                reader.close()
            self._readers.clear()

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors, headers not counted."""
        return sum(info.nbytes for info in self.tensors.values())

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as stored, in new memory.

        Raises CheckpointError for an unknown name, and where the file ends before the tensor does.
        """
        info = self._info(name)
        return self._read(info, 0, prod(info.shape)).view(info.shape)

    def rows(self, name: str, start: int, stop: int, step: int = 1) -> torch.Tensor:
        """Every `step`-th of the rows [start, stop) of dimension 0; only these are read."""
        info = self._info(name)
        if not info.shape or not 0 <= start <= stop <= info.shape[0]:
            raise IndexError(f"rows [{start}, {stop}) of '{name}', whose shape is {[*info.shape]}")
        width = prod(info.shape[1:])
        if step > 1:
            picked = range(start, stop, step)
            return torch.cat([self._read(info, i * width, (i + 1) * width) for i in picked]).view(
                len(picked), *info.shape[1:]
            )
        return self._read(info, start * width, stop * width).view(stop - start, *info.shape[1:])

    def elements(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of the flattened tensor, 1-D; fewer where the tensor ends."""
        info = self._info(name)
        return self._read(info, start, min(stop, prod(info.shape)))

    def read_into(self, buffer: memoryview, name: str, start: int) -> None:
        """Fill the buffer with the tensor's bytes from byte `start` on; several threads may.

        Raises CheckpointError where the file ends before.
        """
        info = self._info(name)
        if start + len(buffer) > info.nbytes:
            raise IndexError(f"bytes [{start}, {start + len(buffer)}) of '{name}'")
        self._reader(info.shard).fill(buffer, info.offset + start)

    def _read(self, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
        return self._reader(info.shard).elements(info, start, stop)

    def _reader(self, shard: str) -> FileReader:
        """The open file of a shard."""
        with self._opening:
            if shard not in self._readers:
                self._readers[shard] = FileReader(self.shard_path(shard))
            return self._readers[shard]

    def is_finite(self, name: str) -> bool:
        """Whether the tensor holds no NaN or infinity; read block by block."""
        count = prod(self._info(name).shape)
        return all(
            is_finite(self.elements(name, start, start + _BLOCK))
            for start in range(0, count, _BLOCK)
        )

    def sample(self, name: str) -> torch.Tensor:
        """The elements of `sample_blocks`, 1-D, in the stored dtype."""
        info = self._info(name)
        if info.nbytes == 0:
            return torch.empty(0, dtype=info.dtype)
        blocks = [self._read(info, *block) for block in sample_blocks(prod(info.shape))]
        return torch.cat(blocks)

    def fingerprint(self, *, full: bool = False) -> str:
        """'sampled:<sha256>' over names in order, shapes, dtypes and samples; cached.

        full: 'full:<sha256>' over all bytes instead. Neither depends on how the model is cut into
        shards. For a Hub model both download the shards that they read.
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
        """The tensor's bytes in order, up to `size` at a time, in one buffer that is used again."""
        info = self._info(name)
        if info.nbytes == 0:
            return
        reader = self._reader(info.shard)
        buffer = memoryview(bytearray(min(size, info.nbytes)))
        for start in range(0, info.nbytes, len(buffer)):
            part = buffer[: info.nbytes - start]
            reader.fill(part, info.offset + start)
            yield part

    def file(self, name: str) -> Path | None:
        """The local path of a file of the model (tokenizer.json, ...), or None if it has none.

        From the Hub the file is downloaded.
        """
        return self._files.path(name) if is_inside(name) and self._files.has(name) else None

    def other_files(self) -> list[str]:
        """Sorted relative names of what a copy of the model needs beside weights and config.json.

        See `files.belongs_in_copy`.
        """
        return sorted(name for name in self._files.names() if belongs_in_copy(name))

    def fetch(self, names: Iterable[str] | None = None) -> None:
        """Download the shards that hold these tensors (None: all); nothing to do for a folder."""
        needed = {self._info(name).shard for name in (self.tensors if names is None else names)}
        self._files.fetch([shard for shard in self.shards if shard in needed])

    def shard_path(self, shard: str) -> Path:
        """The shard file on disk, downloaded if need be."""
        return self._files.path(shard)

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding.

        True if the config ties them (see `ties_head`), and either no head is stored or one with
        the same bytes as the embedding.
        """
        if self._tied is None:
            self._tied = ties_head(self.config, self.name) and self._head_is_embedding()
        return self._tied

    def _head_is_embedding(self) -> bool:
        """Whether no head is stored, or one equal to the embedding."""
        head = next((n for n in self.tensors if n.endswith("lm_head.weight")), None)
        embedding = next(
            (n for n in self.tensors if n.endswith(("embed_tokens.weight", "wte.weight"))), None
        )
        return head is None or (embedding is not None and self._same_bytes(head, embedding))

    def _same_bytes(self, one: str, other: str) -> bool:
        a, b = self._info(one), self._info(other)
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return False
        return torch.equal(
            self.sample(one).view(torch.uint8), self.sample(other).view(torch.uint8)
        ) and all(
            first == second
            for first, second in zip(self.chunks(one), self.chunks(other), strict=True)
        )

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError(f"{self.name} has no tensor '{name}'.")
        return self.tensors[name]
