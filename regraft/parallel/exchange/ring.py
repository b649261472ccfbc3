"""Zigzag ring: keys and values pass from rank to rank while each computes with those that it has.

"Ring Attention with Blockwise Transformers" (2310.01889), in zigzag order. A rank holds its own
keys and values and one neighbour's, whatever the length, and nothing waits for the network as long
as a block's kernel takes longer than its transfer (`choose.needed_bandwidth`). K and V are one
buffer, so one message a step, posted before the kernel and awaited after it. In the backward pass
dK and dV travel behind K and V, one step late and in float32, because each rank adds to what the
one before it sent; partial outputs are joined in float32 too. A rank whose documents do not
reach into a block still passes it on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from regraft.parallel.kept_attention import KeptAttention
from regraft.parallel.kernels.kernel import Kernel, accumulator
from regraft.parallel.kernels.spans import Rows, attend, attend_backward, empty_result

_KV, _DKV = 0, 1  # tags: the two streams of messages between the same neighbours


class Ring(torch.autograd.Function):
    """Causal attention of a zigzag shard: q [B, H, s, D], k, v [B, Hk, s, D] -> [B, H, s, D].

    `rows_of[source]` are this rank's `ring_spans` against the keys of rank `source`; `group` is the
    process group of the context dimension, of two ranks or more; `kept` saves the result
    for the layer's recomputation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rows_of: Sequence[Rows],
        kernel: Kernel,
        scale: float,
        group: dist.ProcessGroup,
        kept: KeptAttention | None = None,
    ) -> Tensor:
        compute = partial(_attention, q, k, v, rows_of, kernel, scale, group)
        out, lse = compute() if kept is None else kept(compute)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.rows_of, ctx.kernel, ctx.scale, ctx.group = rows_of, kernel, scale, group
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (dout,) = grads
        q, k, v, out, lse = ctx.saved_tensors
        group: dist.ProcessGroup = ctx.group
        n, rank, wide = group.size(), group.rank(), accumulator(q.dtype)
        dq = torch.zeros_like(q, dtype=wide)
        kv = torch.stack((k, v))
        behind: _Message | None = None
        for step in range(n):
            coming = _pass_on(kv, group, _KV) if step + 1 < n else None
            dkv = torch.zeros_like(kv, dtype=wide)
            attend_backward(
                ctx.kernel, dout, q, kv[0], kv[1], out, lse, ctx.rows_of[(rank - step) % n],
                ctx.scale, dq, dkv[0], dkv[1],
            )  # fmt: skip
            if behind is not None:
                dkv += behind.wait()
            behind = _pass_on(dkv, group, _DKV)
            if coming is not None:
                kv = coming.wait()
        assert behind is not None
        dk, dv = behind.wait()  # the last step brings every rank its own
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None, None, None


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows_of: Sequence[Rows],
    kernel: Kernel,
    scale: float,
    group: dist.ProcessGroup,
) -> tuple[Tensor, Tensor]:
    """(out in q's type, lse)."""
    n, rank = group.size(), group.rank()
    out, lse = empty_result(q)
    kv = torch.stack((k, v))
    for step in range(n):
        coming = _pass_on(kv, group, _KV) if step + 1 < n else None
        attend(kernel, q, kv[0], kv[1], rows_of[(rank - step) % n], scale, out, lse)
        if coming is not None:
            kv = coming.wait()
    return out.to(q.dtype), lse


class _Message:
    """A tensor on its way to the next rank and another coming from the one before; keeps both
    buffers alive until `wait`."""

    def __init__(self, sent: Tensor, received: Tensor, works: list[dist.Work]) -> None:
        self._sent, self._received, self._works = sent, received, works

    def wait(self) -> Tensor:
        for work in self._works:
            work.wait()
        return self._received


def _pass_on(tensor: Tensor, group: dist.ProcessGroup, tag: int) -> _Message:
    n, rank = group.size(), group.rank()
    received = torch.empty_like(tensor)
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, tensor, group=group, tag=tag, group_peer=(rank + 1) % n),
            dist.P2POp(dist.irecv, received, group=group, tag=tag, group_peer=(rank - 1) % n),
        ]
    )
    return _Message(tensor, received, works)
