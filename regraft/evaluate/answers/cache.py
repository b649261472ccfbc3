"""The cache of the keys and values of a text that several questions share: its size, its limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch

from regraft.device import free_memory
from regraft.units import format_bytes

_SHARE = 0.5  # of the free memory; the rest is for the forward passes


def cache_bytes(config: Mapping[str, Any], tokens: int, itemsize: int) -> int:
    """Bytes of the keys and values of `tokens` tokens. config: a config.json; itemsize: of a
    number. One layer counts twice, since it is copied when it grows."""
    config = config.get("text_config") or config
    heads = int(config["num_attention_heads"])
    head = int(config.get("head_dim") or config["hidden_size"] // heads)
    width = 2 * head * int(config.get("num_key_value_heads") or heads)
    return (int(config["num_hidden_layers"]) + 1) * width * itemsize * tokens


def too_large(size: int, device: torch.device, processes: int = 1) -> str | None:
    """Why a cache of `size` bytes is not made, None if it fits into half of the free memory.

    processes: that have one each, and on a CPU share the memory.
    """
    free = free_memory(device) / (processes if device.type == "cpu" else 1)
    if size <= _SHARE * free:
        return None
    return (
        f"the cache of a text takes {format_bytes(size)}, more than half of the "
        f"{format_bytes(free)} that are free"
    )


def common_tokens(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens at the beginning all texts have in common."""
    columns = zip(*texts, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
