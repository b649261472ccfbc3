"""The training state of several processes, by torch's distributed checkpoint (DCP).

DCP stores its metadata as a pickle (`.metadata`) and loads values that are not tensors with
`weights_only=False` (torch 2.11 to 2.13); both can execute code from the files. Here the metadata
is read by an unpickler that accepts DCP's own classes only, and values with `weights_only=True`.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

from regraft.train.run_state import StateDict

_METADATA_CLASSES = {
    "pathlib": {"PosixPath", "Path"},
    "pathlib._local": {"PosixPath", "Path"},  # Python 3.13
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
}  # fmt: skip


def save_sharded(values: StateDict, folder: Path) -> None:
    """Write a state of sharded tensors. Collective; an error in one process is raised in all."""
    try:
        dcp.save(values, checkpoint_id=folder)
    except CheckpointException as error:
        raise error.failures[min(error.failures)][0] from None


def load_sharded(values: StateDict, folder: Path) -> None:
    """Read a state into `values`. Collective. Raises pickle.UnpicklingError for foreign content."""
    _Reader(folder).read_metadata()  # `load` would print a traceback for foreign content
    try:
        dcp.load(values, storage_reader=_Reader(folder), planner=_Planner())
    except CheckpointException as error:
        raise error.failures[min(error.failures)][0] from None


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = name in _METADATA_CLASSES.get(module, ())
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a checkpoint's metadata")


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = self._get_metadata_path(kwargs.get("rank"))
        with self.fs.create_stream(path, "rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata) or metadata.storage_meta is None:
            raise pickle.UnpicklingError("it is not a checkpoint's metadata")
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        plain = torch.load(value, weights_only=True)
        again = io.BytesIO()
        torch.save(plain, again)  # the base class loads it again, which is safe for plain data
        again.seek(0)
        super().load_bytes(read_item, again)
