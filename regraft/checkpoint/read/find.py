"""Find the files of a model by its name, and check that its index and shards agree."""

from __future__ import annotations

import os
import re
from pathlib import Path

from regraft.checkpoint.read.files import (
    INDEX,
    SINGLE,
    Files,
    Folder,
    is_inside,
    is_weights,
    read_json,
)
from regraft.checkpoint.read.header import TensorInfo
from regraft.checkpoint.read.hub import Hub
from regraft.errors import CheckpointError
from regraft.input_files import unreadable

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_PICKLES = (".bin", ".pt", ".pth")


class AdapterGivenError(CheckpointError):
    """An adapter is given as a model."""


def find_files(name: str) -> Files:
    """The files of a local folder or of a Hub model `org/name[@revision]`.

    Raises CheckpointError where there is neither, or where the files are not those of a model with
    config.json and safetensors weights.
    """
    files, names = find_folder(name)
    weights = any(is_weights(n) for n in names) or INDEX in names
    if not names:
        raise CheckpointError(f"{name} is empty; give a folder with config.json and safetensors.")
    if "adapter_config.json" in names and not (weights and "config.json" in names):
        raise AdapterGivenError(
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


def find_folder(name: str) -> tuple[Files, list[str]]:
    """(the files, their names at the top level) of a local folder or of a Hub repository
    `org/name[@revision]`, whatever it holds. Raises CheckpointError where there is neither."""
    path = Path(name).expanduser()
    try:
        if path.is_file():
            raise CheckpointError(f"{name} is a file; give the folder that holds the model.")
        if path.is_dir():
            return Folder(path), sorted(entry.name for entry in os.scandir(path))
        if match := _HUB_ID.fullmatch(name):
            files = Hub(match[1], match[2])
            return files, sorted(files.names())
    except PermissionError as error:
        raise unreadable(path, error, CheckpointError) from error
    raise CheckpointError(
        f"{name} does not exist; give a model folder or a Hub id such as org/name@revision."
    )


def shards_of(files: Files) -> tuple[list[str], dict[str, str] | None]:
    """The shard files by name, and the index's tensor -> shard map if there is an index."""
    if files.has(SINGLE):
        return [SINGLE], None
    if not files.has(INDEX):
        names = sorted(n for n in files.names() if is_weights(n))
        # Some repositories keep the same weights twice, once in their maker's own format.
        return [n for n in names if not n.startswith("consolidated")] or names, None
    weight_map = read_json(files, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(s, str) for s in weight_map.values()):
        raise CheckpointError(
            f"{INDEX} of {files.where} has no 'weight_map' of tensors to files; download it again."
        )
    for tensor, shard in weight_map.items():
        if not is_inside(shard):
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


def check_index(
    files: Files,
    weight_map: dict[str, str],
    headers: dict[str, tuple[list[TensorInfo], dict[str, str]]],
) -> None:
    """Raise CheckpointError where the index and the headers of the shards disagree."""
    stored = {info.name: shard for shard, (infos, _) in headers.items() for info in infos}
    for tensor, shard in weight_map.items():
        if stored.get(tensor) != shard:
            actual = f"it is in {stored[tensor]}" if tensor in stored else "it is in no shard"
            raise CheckpointError(
                f"{INDEX} of {files.where} puts tensor '{tensor}' in {shard}, but {actual}; "
                "download the model again."
            )
    for tensor, shard in stored.items():
        if tensor not in weight_map:
            raise CheckpointError(
                f"{shard} of {files.where} holds tensor '{tensor}', which {INDEX} does not list; "
                "download the model again."
            )
