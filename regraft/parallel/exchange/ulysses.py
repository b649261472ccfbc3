"""Ulysses: exchange all heads of a piece of the sequence for a few heads of all of it.

"DeepSpeed Ulysses" (2309.14509). One all-to-all before the attention, with q, k and v in one
buffer, and one after it; between them the attention is any other, whole or over a ring ("USP",
2405.07719). The number of ranks must divide the KV heads, which travel once each and unrepeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from regraft.errors import InputError

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def over_heads(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor, group: dist.ProcessGroup
) -> Tensor:
    """q [B, H, s, D], k, v [B, Hk, s, D] -> [B, H, s, D], where `attention` is called with
    [B, H/U, U s, D] and [B, Hk/U, U s, D]: rank u of U has the heads from u H/U on.

    Raises InputError where U does not divide Hk.
    """
    ranks = group.size()
    check_heads(k.shape[1], ranks)
    heads = [t.shape[1] // ranks for t in (q, k, v)]
    qkv = torch.cat([t.unflatten(1, (ranks, -1)) for t in (q, k, v)], 2).flatten(1, 2)
    mine = _AllToAll.apply(qkv, group, 1, 2).split(heads, 1)
    return _AllToAll.apply(attention(*mine), group, 2, 1)


def check_heads(kv_heads: int, ranks: int) -> None:
    """Raises InputError where the ranks do not divide the KV heads."""
    if kv_heads % ranks:
        raise InputError(
            f"ulysses {ranks} does not divide the model's {kv_heads} key-value heads: choose a "
            "divisor, and use `context` for the rest."
        )


class _AllToAll(torch.autograd.Function):
    """Cut along axis `split`, one piece to each rank; join what comes along axis `joined`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, split: int, joined: int) -> Tensor:
        ctx.group, ctx.split, ctx.joined = group, split, joined
        return _exchange(x, group, split, joined)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _exchange(grads[0], ctx.group, ctx.joined, ctx.split), None, None, None


def _exchange(x: Tensor, group: dist.ProcessGroup, split: int, joined: int) -> Tensor:
    sent = torch.stack(x.chunk(group.size(), split))
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return torch.cat(received.unbind(0), joined)
