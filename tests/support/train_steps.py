"""A small model and its batches, for tests of the arithmetic of one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from regraft.parallel import Mesh


def tiny_model(dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    """A random Llama of three layers, 4 heads and 2 KV heads, the same in every call."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    ).to(dtype)  # fmt: skip


def cut(
    ids: Tensor,
    documents: Sequence[tuple[int, ...]] | None = None,
    positions: Tensor | None = None,
) -> dict[str, Any]:
    """The batch of one process. documents: for each row the first tokens of its documents."""
    batch = {"input_ids": ids}
    if documents is not None:
        batch["documents"] = torch.stack(
            [(torch.arange(ids.shape[1])[:, None] >= torch.tensor(s)).sum(1) for s in documents]
        )
    if positions is not None:
        batch["position_ids"] = positions
    return Mesh.create().cut(batch)
