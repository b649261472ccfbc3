"""Check that a config.json describes the tensors beside it, by name and shape, before
transformers builds a model from the config."""

from __future__ import annotations

import re
from typing import Any

from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError

_LAYER = re.compile(r"^(?:(?:model|language_model|transformer)\.)*(?:layers|h)\.(\d+)\.")


def check_config(checkpoint: Checkpoint) -> None:
    """Compare depth, vocabulary and width with the tensors. Raises CheckpointError with both
    numbers.

    Sizes are compared only where a tensor of the usual name shows them.
    """
    config = checkpoint.config
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    for key, size in _sizes(checkpoint).items():
        stated: Any = text.get(key)
        # a checkpoint may store layers beyond the model's, such as heads that predict more tokens
        enough = key == "num_hidden_layers" and type(stated) is int and 0 < stated <= size
        if stated is not None and stated != size and not enough:
            raise CheckpointError(
                f"config.json of {checkpoint.name} says {key}: {str(stated)[:40]}, and its tensors "
                f"have {size}; correct the config, or download the model again."
            )


def _sizes(checkpoint: Checkpoint) -> dict[str, int]:
    """The sizes that follow from names and shapes, by their keys in a config."""
    sizes: dict[str, int] = {}
    layers = [int(match[1]) for name in checkpoint.tensors if (match := _LAYER.match(name))]
    if layers:
        sizes["num_hidden_layers"] = 1 + max(layers)
    for name, info in checkpoint.tensors.items():
        if _plain(name) == "embed_tokens.weight" and len(info.shape) == 2:
            sizes["vocab_size"] = info.shape[0]
        if _plain(name) == "layers.0.input_layernorm.weight" and len(info.shape) == 1:
            sizes["hidden_size"] = info.shape[0]
    return sizes


def _plain(name: str) -> str:
    """The name without prefixes such as `model.` and `language_model.`."""
    return re.sub(r"^(?:(?:model|language_model)\.)+", "", name)
