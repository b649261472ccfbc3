"""Model folders made of safetensors files, good and bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from regraft.checkpoint.read.files import INDEX
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError

CONFIG = {"model_type": "llama", "tie_word_embeddings": False}


def model(folder: Path, shards: dict[str, dict[str, torch.Tensor]] | None = None) -> Path:
    """A model folder from shard file -> tensors, with an index if there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = {"model.safetensors": tensors()} if shards is None else shards
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for shard, held in shards.items():
        save_file(held, folder / shard, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: shard for shard, held in shards.items() for name in held}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "model.embed_tokens.weight": torch.randn(64, 48, generator=draw).bfloat16(),
        "model.layers.0.up.weight": torch.randn(40, 48, generator=draw).bfloat16(),
        "model.norm.weight": torch.randn(48, generator=draw).bfloat16(),
        "lm_head.weight": torch.randn(64, 48, generator=draw).bfloat16(),
    }


def two_shards(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    items = list(tensors(seed).items())
    return {
        "model-00001-of-00002.safetensors": dict(items[:2]),
        "model-00002-of-00002.safetensors": dict(items[2:]),
    }


def raw(folder: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A model folder whose model.safetensors has this header, valid or not."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + text + data)
    return folder


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(source: Path | str) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(source)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", '"'))
    return message
