"""A folder of links to a model or adapter, for a program that regraft runs.

Another program reads whatever lies in a folder: a pytorch_model.bin beside weights of an unusual
name, an adapter beside a full model, code that `auto_map` names. A folder made here has only the
shards that the checkpoint lists, with an index, and config and tokenizer files that name no code.
"""

from __future__ import annotations

import json
from pathlib import Path

from regraft.checkpoint.hf.tokenizer import link_tokenizer, tokenizer_paths
from regraft.checkpoint.read.files import INDEX
from regraft.checkpoint.read.source import Checkpoint


def link_model(checkpoint: Checkpoint, folder: Path) -> None:
    """Fill a new folder with links to the shards of a checkpoint; a Hub model is downloaded."""
    folder.mkdir(parents=True)
    checkpoint.fetch()
    link_tokenizer(tokenizer_paths(checkpoint), checkpoint.config, folder)
    names = {
        shard: f"shard-{number:05}.safetensors" for number, shard in enumerate(checkpoint.shards)
    }
    for shard, name in names.items():
        (folder / name).symlink_to(checkpoint.shard_path(shard).absolute())
    weight_map = {name: names[info.shard] for name, info in checkpoint.tensors.items()}
    index = {"metadata": {"total_size": checkpoint.total_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def link_files(paths: list[Path], folder: Path) -> None:
    """Fill a new folder with links to these files, by their own names."""
    folder.mkdir(parents=True)
    for path in paths:
        (folder / path.name).symlink_to(path.absolute())
