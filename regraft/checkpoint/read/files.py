"""The files of a model: where they are, which hold weights, and which a copy of it needs."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Protocol

from regraft import progress
from regraft.checkpoint.read.header import local_head
from regraft.checkpoint.read.links import leads_out, refuse_links_out
from regraft.errors import CheckpointError
from regraft.input_files import JsonObject, read_json_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_OTHER_FORMATS = {"original", "onnx", "gguf", "openvino", "coreml"}
# Records and figures of how a model was made, by regraft and by trainers; a copy has its own.
_HISTORY = {
    "regraft.json", "train.json", "metrics.jsonl", "watch.jsonl", "recipe.yaml", "curves.png",
    "graft.png", "merge.png", "trainer_state.json", "tensorboard", "wandb", "runs",
}  # fmt: skip
_WEIGHT_SUFFIXES = (
    ".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5",
    ".msgpack",
)  # fmt: skip
# Files that a program could run when it opens a copy of the model.
_CODE_SUFFIXES = (".py", ".pyc", ".so", ".dll", ".sh", ".pkl", ".pickle")


class Files(Protocol):
    """The files of one model, in a folder or on the Hub."""

    where: str  # for messages
    remedy: str  # for messages: how to get a missing shard
    revision: str | None  # commit on the Hub

    def names(self) -> list[str]:
        """Relative names of all files, with forward slashes."""

    def has(self, name: str) -> bool:
        """Whether the model has a file of this name."""

    def path(self, name: str) -> Path:
        """The local path of a file that exists, downloaded if need be."""

    def heads(self, shards: list[str]) -> list[tuple[bytes, int]]:
        """(first bytes, file size) of each shard; 8 bytes and the header, or all if fewer."""

    def fetch(self, names: list[str]) -> None:
        """Download these files, all at once."""


class Folder:
    """The files of a model in a local folder, as `Files`; links that lead out of it do not
    count."""

    def __init__(self, root: Path) -> None:
        self.revision: str | None = None
        self.root = root
        self.where = str(root)
        self.remedy = "finish the download"
        self._warned: set[str] = set()

    def names(self) -> list[str]:
        result = []
        for folder, subfolders, names in os.walk(self.root):
            subfolders[:] = [
                s for s in subfolders if not s.startswith(".") and s not in _OTHER_FORMATS
            ]
            for name in names:
                path = Path(folder) / name
                relative = path.relative_to(self.root).as_posix()
                if not leads_out(self.root, path):
                    result.append(relative)
                elif relative not in self._warned:
                    self._warned.add(relative)
                    progress.warn(f"{path} is a link to a file outside the model and is left out.")
        return result

    def has(self, name: str) -> bool:
        return os.path.isfile(self.root / name)  # False for a name that is too long, too

    def path(self, name: str) -> Path:
        refuse_links_out(self.root, (name,))
        return self.root / name

    def heads(self, shards: list[str]) -> list[tuple[bytes, int]]:
        return [local_head(self.path(shard)) for shard in shards]

    def fetch(self, names: list[str]) -> None:
        pass


def read_json(files: Files, name: str) -> JsonObject:
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
    """Whether the name is that of a safetensors shard at the top of a model."""
    return (
        name.endswith(".safetensors") and "/" not in name and not name.startswith((".", "adapter_"))
    )


def belongs_in_copy(name: str) -> bool:
    """Whether a copy of the model needs this file beside weights and config.json.

    Tokenizer, chat template, generation config and licence belong in it; code, READMEs, hidden
    files, weights in other formats and records of how the model was made do not.
    """
    *folders, base = PurePosixPath(name).parts
    return not (
        name == "config.json"
        or base.lower().startswith("readme")
        or base.endswith((*_WEIGHT_SUFFIXES, *_CODE_SUFFIXES))
        or any(part.startswith(".") for part in (*folders, base))
        or not _OTHER_FORMATS.isdisjoint(folders)
        or PurePosixPath(name).parts[0] in _HISTORY
    )
