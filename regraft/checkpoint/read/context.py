"""The context of a checkpoint, by its config.json."""

from __future__ import annotations

from regraft.checkpoint.config import name_checkpoint
from regraft.checkpoint.read.source import Checkpoint
from regraft.rope import ContextSpec


def checkpoint_context(checkpoint: Checkpoint) -> ContextSpec:
    """The RoPE and context length of a checkpoint. Raises CheckpointError naming the checkpoint."""
    with name_checkpoint(checkpoint.name):
        return ContextSpec.from_config(checkpoint.config)
