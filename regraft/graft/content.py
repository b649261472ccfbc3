"""Hashes of the inputs and outputs of stages: of whole files, so that any change changes the hash.

A model from the Hub is identified by its commit.
"""

from __future__ import annotations

from pathlib import Path

from regraft.adapters.folder import CONFIG, DIFFERENCES, LINEAGE, RECORD, WEIGHTS
from regraft.adapters.reader import Adapter
from regraft.checkpoint.read.source import Checkpoint
from regraft.file_hashes import files_content


def model_content(source: str) -> str:
    """Hash of a model's weights, config, tokenizer and the like. Raises CheckpointError."""
    with Checkpoint.open(source) as checkpoint:
        if checkpoint.revision is not None:
            return f"{checkpoint.name}@{checkpoint.revision}"
        return files_content(model_files(checkpoint).items())


def model_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """Name -> path of a model's weights, config, tokenizer and the like."""
    names = ["config.json", *checkpoint.shards, *checkpoint.other_files()]
    return {name: path for name in names if (path := checkpoint.file(name)) is not None}


def adapter_content(source: str) -> str:
    """Hash of an adapter's factors, differences, context and lineage. Raises CheckpointError."""
    folder = Adapter.open(source).folder
    names = (CONFIG, WEIGHTS, RECORD, LINEAGE, DIFFERENCES)
    return files_content((name, folder / name) for name in names if (folder / name).is_file())
