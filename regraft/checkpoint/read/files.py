"""Where a model's files are, and which are what: weights, or what a copy needs beside them."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from regraft import progress
from regraft.checkpoint.read.header import local_head
from regraft.checkpoint.read.links import leads_out, refuse_links_out
from regraft.errors import CheckpointError
from regraft.input_files import read_json_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

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
# What could be run where a copy of the model is opened.
_CODE_SUFFIXES = (".py", ".pyc", ".so", ".dll", ".sh", ".pkl", ".pickle")


class Files(Protocol):
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


class Folder:
    def __init__(self, root: Path) -> None:
        self.revision: str | None = None
        self.root = root
        self.where = str(root)
        self.remedy = "finish the download"
        self._warned: set[str] = set()

    def names(self) -> list[str]:
        found = []
        for folder, subfolders, names in os.walk(self.root):
            subfolders[:] = [
                s for s in subfolders if not s.startswith(".") and s not in _OTHER_FORMATS
            ]
            for name in names:
                path = Path(folder) / name
                relative = path.relative_to(self.root).as_posix()
                if not leads_out(self.root, path):
                    found.append(relative)
                elif relative not in self._warned:
                    self._warned.add(relative)
                    progress.warn(f"{path} is a link to a file outside the model and is left out.")
        return found

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def path(self, name: str) -> Path:
        refuse_links_out(self.root, (name,))
        return self.root / name

    def heads(self, shards: list[str]) -> list[tuple[bytes, int]]:
        return [local_head(self.path(shard)) for shard in shards]

    def fetch(self, names: list[str]) -> None:
        pass


def read_json(files: Files, name: str) -> dict[str, Any]:
    """The JSON object in a file of the model. Raises CheckpointError."""
    return read_json_object(files.path(name), CheckpointError, remedy="download it again")


def is_inside(name: str) -> bool:
    """Whether a relative name stays in its folder."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and not {"..", ""} & {*path.parts}
        and "\\" not in name
        and "\0" not in name
    )


def is_weights(name: str) -> bool:
    """Whether a file at the top of a model is one of its shards, as far as its name tells."""
    return (
        name.endswith(".safetensors") and "/" not in name and not name.startswith((".", "adapter_"))
    )


def is_other(name: str) -> bool:
    *folders, base = PurePosixPath(name).parts
    return not (
        name == "config.json"
        or base.lower().startswith("readme")
        or base.endswith((*_WEIGHT_SUFFIXES, *_CODE_SUFFIXES))
        or any(part.startswith(".") for part in (*folders, base))
        or not _OTHER_FORMATS.isdisjoint(folders)
        or PurePosixPath(name).parts[0] in _HISTORY
    )
