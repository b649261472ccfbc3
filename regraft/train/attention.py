"""Causal attention by order in the row, whatever the positions say.

transformers 5 builds its masks from position ids and takes every jump for the start of another
document, so rows with skipped positions would train nothing across the skip. Here tokens see
those before them in the row, and documents are told apart only where `documents` says so: for each
row the first token of each of its documents, beginning with 0.

A name that transformers has no mask function for makes it build no mask at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NAME = "regraft_train"
Documents = Sequence[tuple[int, ...]]


def use_attention(model: Any) -> None:
    """Let a transformers model attend through `attend`; `documents` is a keyword of its forward."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    documents: Documents | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [B, H, S, D], key and value [B, Hk, S, D] -> (out [B, S, H, D], None).

    Rotation leaves queries and keys in float32; they are rounded to the values' type here.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    if documents is None or all(len(starts) == 1 for starts in documents):
        return _causal(query, key, value, scaling, dropout).transpose(1, 2), None
    rows = []
    for row, starts in enumerate(documents):
        ends = (*starts[1:], query.shape[2])
        q, k, v = (t[row : row + 1] for t in (query, key, value))
        parts = [
            _causal(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], scaling, dropout)
            for a, b in zip(starts, ends, strict=True)
        ]
        rows.append(torch.cat(parts, 2))
    return torch.cat(rows).transpose(1, 2), None


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scale, dropout_p=dropout, enable_gqa=True
    )
