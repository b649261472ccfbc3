"""A model on disk or on the Hub, read tensor by tensor and never whole in memory.

`Checkpoint.open` takes a local folder or a Hub id `org/name[@revision]`, reads the safetensors
headers and checks them against the files, the index and each other, so that a broken download is
named before any work starts. Tensors are views of a private memory map: cheap to make, given back
with `release`, and unable to change the file. From the Hub only headers (range requests) and small
files are fetched at first; a shard is downloaded when a tensor of it is first read.

The file format is safetensors: 8 bytes little-endian header length, a JSON header, the data
(https://huggingface.co/docs/safetensors). The reader is our own because we need the absolute
offsets, errors that say what to do, and maps whose pages can be given back.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import torch

from regraft import progress
from regraft.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
DTYPE_CODES: dict[torch.dtype, str] = {dtype: code for code, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_OTHER_FORMATS = {"original", "onnx", "gguf", "openvino", "coreml"}
# Of how a model came about, by regraft and by trainers: a copy came about differently.
_HISTORY = {
    "regraft.json", "train.json", "metrics.jsonl", "watch.jsonl", "recipe.yaml", "curves.png",
    "graft.png", "merge.png", "trainer_state.json", "tensorboard", "wandb", "runs",
}  # fmt: skip
_WEIGHT_SUFFIXES = (
    ".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5",
    ".msgpack",
)  # fmt: skip
_PICKLES = (".bin", ".pt", ".pth")
_SAMPLE_BLOCKS, _SAMPLE_BLOCK = 16, 64
# Without it a private writable map larger than memory is refused by Linux's overcommit heuristic.
# Python exports the constant from 3.13 on.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `offset` is absolute in the shard file, `nbytes` its size there."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    shard: str
    offset: int
    nbytes: int


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
        files: _Files,
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
        files = _find(name)
        config = _read_json(files, "config.json")
        shards, weight_map = _shards(files)
        headers = {
            shard: _parse_header(shard, *head, where=files.where)
            for shard, head in zip(shards, files.heads(shards), strict=True)
        }
        if weight_map is not None:
            _check_index(files, weight_map, headers)
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
        with _opened(self.shard_path(info.shard)) as fd:
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
        with _opened(self.shard_path(info.shard)) as fd:
            done = 0
            while done < info.nbytes:
                want = min(len(buffer), info.nbytes - done)
                try:
                    got = os.preadv(fd, [buffer[:want]], info.offset + done)
                except OSError as error:
                    raise _unreadable(self.shard_path(info.shard), error) from error
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
        return self._files.path(name) if _inside(name) and self._files.has(name) else None

    def other_files(self) -> list[str]:
        """Sorted relative names of what a copy of the model needs beside weights and config.json.

        That is the tokenizer, chat template, generation config, licence and custom code; not
        README, hidden files, weights in other formats and their folders, or records and figures
        of how this one came about.
        """
        return sorted(name for name in self._files.names() if _is_other(name))

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
            with _opened(path) as fd:
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


# Where the files are: a folder, or a Hub repository behind its cache.


class _Files(Protocol):
    where: str  # for messages
    remedy: str  # for messages: how a missing shard is got
    revision: str | None

    def names(self) -> list[str]:
        """Relative names of all files, with forward slashes."""

    def has(self, name: str) -> bool: ...

    def path(self, name: str) -> Path:
        """The local path of a file that exists, downloaded if need be."""

    def heads(self, shards: list[str]) -> list[tuple[bytes, int]]:
        """Of each shard: its first bytes (8 + header, or as many as there are) and its size."""

    def fetch(self, names: list[str]) -> None: ...


class _Folder:
    def __init__(self, root: Path) -> None:
        self.revision: str | None = None
        self.root = root
        self.where = str(root)
        self.remedy = "finish the download"

    def names(self) -> list[str]:
        found = []
        for folder, subfolders, names in os.walk(self.root):
            subfolders[:] = [
                s for s in subfolders if not s.startswith(".") and s not in _OTHER_FORMATS
            ]
            found += [(Path(folder) / n).relative_to(self.root).as_posix() for n in names]
        return found

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def path(self, name: str) -> Path:
        return self.root / name

    def heads(self, shards: list[str]) -> list[tuple[bytes, int]]:
        return [_local_head(self.root / shard) for shard in shards]

    def fetch(self, names: list[str]) -> None:
        pass


class _Hub:
    """A Hub repository at one commit; files come from huggingface_hub's cache or the network."""

    def __init__(self, repo: str, revision: str | None) -> None:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import (
            HFValidationError,
            HTTPError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )

        self.repo = repo
        self.where = repo if revision is None else f"{repo}@{revision}"
        self.remedy = "the repository is incomplete, so choose another"
        self._snapshot: Path | None = None  # set when offline: only what lies there exists
        try:
            info = HfApi().model_info(repo, revision=revision, timeout=20)
            self.revision: str | None = info.sha
            self._names = [sibling.rfilename for sibling in info.siblings or []]
            if "config.json" in self._names:
                # By its branch, not its commit: so the cache learns where the branch points, and
                # the model opens offline by the same name.
                self._download("config.json", revision or "main")
        except HFValidationError as error:
            raise CheckpointError(
                f"{repo} is neither a local folder nor a possible Hub id; give a model folder or "
                "org/name@revision."
            ) from error
        except (HTTPError, OfflineModeIsEnabled) as error:
            status = getattr(getattr(error, "response", None), "status_code", 503)
            if isinstance(error, RepositoryNotFoundError) or status < 500:
                raise self._explain(error) from error
            cache = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
            ref = cache / "refs" / (revision or "main")
            commit = ref.read_text().strip() if ref.is_file() else revision or "main"
            self._snapshot = cache / "snapshots" / commit
            if not self._snapshot.is_dir():
                raise self._explain(error) from error
            self.revision = commit
            self.remedy = "the Hub cannot be reached, so connect (and unset HF_HUB_OFFLINE) once"
            self._names = _Folder(self._snapshot).names()

    def names(self) -> list[str]:
        return self._names

    def has(self, name: str) -> bool:
        return name in self._names

    def path(self, name: str) -> Path:
        if self._snapshot is not None:
            if not (self._snapshot / name).is_file():
                raise CheckpointError(
                    f"{name} of {self.where} is not in the local Hub cache; {self.remedy}."
                )
            return self._snapshot / name
        return self._download(name, self.revision)

    def _download(self, name: str, revision: str | None) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HTTPError

        try:
            with _hub_bars():
                return Path(hf_hub_download(self.repo, name, revision=revision))
        except (HTTPError, EntryNotFoundError) as error:
            raise self._explain(error, name) from error
        except OSError as error:
            raise CheckpointError(
                f"{name} of {self.where} cannot be stored in the Hub cache "
                f"({error.strerror or error}); free space there or set HF_HOME to another disk."
            ) from error

    def heads(self, shards: list[str]) -> list[tuple[bytes, int]]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(self._head, shards))

    def fetch(self, names: list[str]) -> None:
        with _hub_bars(), ThreadPoolExecutor(4) as pool:
            list(pool.map(self.path, names))

    def _head(self, shard: str) -> tuple[bytes, int]:
        from huggingface_hub import hf_hub_url, try_to_load_from_cache
        from huggingface_hub.errors import HTTPError

        cached = try_to_load_from_cache(self.repo, shard, revision=self.revision)
        if isinstance(cached, str) or self._snapshot is not None:
            return _local_head(self.path(shard))
        url = hf_hub_url(self.repo, shard, revision=self.revision)
        try:
            # 97 headers of 100 fit in the first 100 kB (huggingface_hub PR 1855).
            head, size = _get_range(url, 0, 100_000)
            length = int.from_bytes(head[:8], "little")
            if len(head) < min(8 + length, size) and length <= _MAX_HEADER:
                head += _get_range(url, len(head), 8 + length - 1)[0]
        except HTTPError as error:
            raise self._explain(error, shard) from error
        return head, size

    def _explain(self, error: Exception, name: str | None = None) -> CheckpointError:
        """One sentence for what the Hub answered."""
        from huggingface_hub import errors

        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            return CheckpointError(
                f"The Hub model {self.repo} is gated: ask for access on its page, then log in with "
                "`hf auth login`."
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return CheckpointError(
                f"The Hub model {self.repo} has no revision '{self.where.partition('@')[2]}'; "
                "give a branch, tag or commit that its page lists."
            )
        if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
            return CheckpointError(
                f"{self.repo} is neither a local folder nor a model on the Hub that you may read; "
                "check the spelling, and log in with `hf auth login` if it is private."
            )
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return CheckpointError(f"The Hub model {self.where} has no file {name}.")
        if status is not None:
            return CheckpointError(
                f"The Hub answered {status} for {name or 'the model'} of {self.where}; try again "
                "later or download the model to a folder."
            )
        return CheckpointError(
            f"{self.where} is not a local folder, and the Hub cannot be reached "
            f"({type(error).__name__}) to get {name or 'it'}; check the network or download the "
            "model to a folder."
        )


def _find(name: str) -> _Files:
    """The folder or Hub repository that `name` means, known to look like a model."""
    path = Path(name).expanduser()
    files: _Files
    try:
        if path.is_file():
            raise CheckpointError(f"{name} is a file; give the folder that holds the model.")
        if path.is_dir():
            files = _Folder(path)
            names = sorted(entry.name for entry in os.scandir(path))
        elif match := _HUB_ID.fullmatch(name):
            files = _Hub(match[1], match[2])
            names = sorted(files.names())
        else:
            raise CheckpointError(
                f"{name} does not exist; give a model folder or a Hub id such as org/name@revision."
            )
    except PermissionError as error:
        raise _unreadable(path, error) from error
    weights = any(_is_weights(n) for n in names) or INDEX in names
    if not names:
        raise CheckpointError(f"{name} is empty; give a folder with config.json and safetensors.")
    if "adapter_config.json" in names and not (weights and "config.json" in names):
        raise CheckpointError(
            f"{name} is an adapter, not a model; give the model here and the adapter to "
            "`regraft apply`."
        )
    if "config.json" not in names:
        raise CheckpointError(
            f"{name} has no config.json; give the folder of a model saved by transformers."
        )
    if not weights and any(n.endswith(_PICKLES) for n in names):
        raise CheckpointError(
            f"{name} holds pickled weights only, which regraft does not load; convert them with: "
            'python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{name}', dtype='auto').save_pretrained('{name}-safetensors')\""
        )
    if not weights:
        raise CheckpointError(
            f"{name} has no safetensors weights ({SINGLE} or {INDEX} with its shards); download "
            "the model again."
        )
    return files


def _shards(files: _Files) -> tuple[list[str], dict[str, str] | None]:
    """The shard files by name, and the index's tensor -> shard map if there is an index."""
    if files.has(SINGLE):
        return [SINGLE], None
    if not files.has(INDEX):
        names = sorted(n for n in files.names() if _is_weights(n))
        # Some repositories keep the same weights twice, once in their maker's own format.
        return [n for n in names if not n.startswith("consolidated")] or names, None
    weight_map = _read_json(files, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(s, str) for s in weight_map.values()):
        raise CheckpointError(
            f"{INDEX} of {files.where} has no 'weight_map' of tensors to files; download it again."
        )
    for tensor, shard in weight_map.items():
        if not _inside(shard):
            raise CheckpointError(
                f"{INDEX} of {files.where} puts tensor '{tensor}' in '{shard}', which is not a "
                "file inside the model; do not use this model."
            )
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not files.has(shard)]
    if missing:
        raise CheckpointError(
            f"{files.where} lacks {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}, which {INDEX} lists; "
            f"{files.remedy}."
        )
    return shards, weight_map


def _check_index(
    files: _Files,
    weight_map: dict[str, str],
    headers: dict[str, tuple[list[TensorInfo], dict[str, str]]],
) -> None:
    stored = {info.name: shard for shard, (infos, _) in headers.items() for info in infos}
    for tensor, shard in weight_map.items():
        if stored.get(tensor) != shard:
            there = f"it is in {stored[tensor]}" if tensor in stored else "it is in no shard"
            raise CheckpointError(
                f"{INDEX} of {files.where} puts tensor '{tensor}' in {shard}, but {there}; "
                "download the model again."
            )
    for tensor, shard in stored.items():
        if tensor not in weight_map:
            raise CheckpointError(
                f"{shard} of {files.where} holds tensor '{tensor}', which {INDEX} does not list; "
                "download the model again."
            )


def _parse_header(
    shard: str, head: bytes, size: int, *, where: str
) -> tuple[list[TensorInfo], dict[str, str]]:
    """The tensors of a shard by offset and its `__metadata__`, every number checked.

    head: at least 8 bytes and the header, or the whole file if it is shorter. size: of the file.
    """
    path = f"{where}/{shard}"

    def bad(what: str) -> CheckpointError:
        return CheckpointError(
            f"{path} is not a valid safetensors file: {what}; download it again."
        )

    def truncated(promised: int) -> CheckpointError:
        return CheckpointError(
            f"{path} is truncated: its header promises {promised} bytes and {size} are there; "
            "download it again."
        )

    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes); download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`.")
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8 or length > _MAX_HEADER:
        raise bad("it does not begin with the length of a header")
    if 8 + length > size:
        raise truncated(8 + length)
    try:
        header = json.loads(head[8 : 8 + length])
    except ValueError as error:
        raise bad("its header is not JSON") from error
    if not isinstance(header, dict):
        raise bad("its header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise bad("its __metadata__ is not a map of strings")
    infos = []
    for name, entry in header.items():
        try:
            code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            numbers = [begin, end, *shape]
        except (KeyError, TypeError, ValueError) as error:
            raise bad(f"tensor '{name}' lacks dtype, shape or data_offsets") from error
        if any(type(number) is not int or number < 0 for number in numbers):
            raise bad(f"shape or offsets of tensor '{name}' are not whole numbers")
        if not isinstance(code, str) or code not in DTYPES:
            raise CheckpointError(
                f"Tensor '{name}' in {path} has dtype {code}, which regraft does not read; use a "
                "checkpoint that is not packed or quantised."
            )
        dtype = DTYPES[code]
        if end - begin != prod(shape) * dtype.itemsize:
            raise bad(
                f"tensor '{name}' of shape {shape} and dtype {code} cannot fill {end - begin} bytes"
            )
        offset = 8 + length + begin
        infos.append(TensorInfo(name, tuple(shape), dtype, shard, offset, end - begin))
    infos.sort(key=lambda info: (info.offset, info.nbytes))
    position = 8 + length
    for info in infos:
        if info.offset != position:
            kind = "overlap" if info.offset < position else "leave a hole"
            raise bad(f"the bytes of tensor '{info.name}' and the one before it {kind}")
        position += info.nbytes
    if position > size:
        raise truncated(position)
    if position < size:
        raise bad(f"{size - position} bytes follow its last tensor")
    return infos, metadata


def _local_head(path: Path) -> tuple[bytes, int]:
    with _opened(path) as fd:
        size = os.fstat(fd).st_size
        head = os.pread(fd, 8, 0)
        length = int.from_bytes(head, "little")
        if length <= min(_MAX_HEADER, size):
            head += os.pread(fd, length, 8)
        elif head.startswith(b"version "):
            head += os.pread(fd, 100, 8)
        return head, size


def _get_range(url: str, first: int, last: int) -> tuple[bytes, int]:
    """Bytes [first, last] of a URL, and the size of the whole file."""
    from huggingface_hub import get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers

    headers = {
        **build_hf_headers(),
        "Range": f"bytes={first}-{last}",
        "Accept-Encoding": "identity",
    }
    response = get_session().get(url, headers=headers, timeout=30)
    hf_raise_for_status(response)
    data = response.content
    if response.status_code != 206:  # the server sent the whole file
        return data[first : last + 1], len(data)
    return data, int(response.headers["Content-Range"].rpartition("/")[2])


def _read_json(files: _Files, name: str) -> dict[str, Any]:
    path = files.path(name)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; download it again.")
    return value


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{error.filename or path} cannot be read ({error.strerror}); check that it exists and "
        "that you may read it."
    )


@contextmanager
def _hub_bars() -> Iterator[None]:
    """huggingface_hub's own progress bars, silent when ours are."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    silence = progress.console().quiet and not are_progress_bars_disabled()
    if silence:
        disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            enable_progress_bars()


def _inside(name: str) -> bool:
    """Whether a relative name stays in its folder."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and not {"..", ""} & {*path.parts}
        and "\\" not in name
        and "\0" not in name
    )


def _is_weights(name: str) -> bool:
    """Whether a file at the top of a model is one of its shards, as far as its name tells."""
    return (
        name.endswith(".safetensors") and "/" not in name and not name.startswith((".", "adapter_"))
    )


def _is_other(name: str) -> bool:
    *folders, base = PurePosixPath(name).parts
    return not (
        name == "config.json"
        or base.lower().startswith("readme")
        or base.endswith(_WEIGHT_SUFFIXES)
        or any(part.startswith(".") for part in (*folders, base))
        or not _OTHER_FORMATS.isdisjoint(folders)
        or PurePosixPath(name).parts[0] in _HISTORY
    )


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
