"""Zigzag gather: every rank fetches all keys and values, one KV head at a time.

The keys and values of the next KV head travel while the kernel works on this one, so a rank never
holds more than two heads of the whole sequence: 2 x 2 x S x D values, 1 GiB at a million tokens
in bfloat16. Each query sees all its keys in one kernel call, documents included (varlen), so
there is no chain of roundings as long as the ring; that is why this is the default. The idea of
gathering by head groups is from "The Llama 3 Herd of Models" (2407.21783, 3.3.2); we add
zigzag order, so that every rank has the same work. dK and dV are summed in float32 and
scattered back one head behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from regraft.parallel.kernels.kernel import Grads, Kernel, accumulator
from regraft.parallel.kernels.spans import (
    Rows,
    attend,
    attend_backward,
    run_backward,
    run_forward,
    single_run,
)

# torch 2.13 renamed both.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True, eq=False)
class Gather:
    """The exchange of one call: rows: this rank's `gather_spans`; group: the process group of the
    context dimension (None: one process, k and v are whole)."""

    rows: Rows
    kernel: Kernel
    scale: float
    group: dist.ProcessGroup | None

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `Exchange`."""
        run = single_run(self.rows) if self.group is None else None
        if run is not None:  # one kernel call: no buffer beside what it returns
            out, lse = run_forward(self.kernel, q, k, v, run, self.scale)
            return out.to(q.dtype), lse
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=accumulator(q.dtype))
        for heads, keys, values in _by_head(q, k, v, self.group):
            joined = (out[:, heads], lse[:, heads])
            attend(
                self.kernel, q[:, heads], keys, values, self.rows, self.scale, *joined, once=True
            )
        return out, lse

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> Grads:
        """See `Exchange`; dk and dv are in the accumulator's type."""
        run = single_run(self.rows) if self.group is None else None
        if run is not None:
            return run_backward(self.kernel, dout, q, k, v, out, lse, run, self.scale)
        dq = torch.empty_like(q)
        parts: list[Tensor] = []
        sending: tuple[dist.Work, Tensor] | None = None
        for heads, keys, values in _by_head(q, k, v, self.group):
            dkv = torch.zeros((2, *keys.shape), dtype=accumulator(q.dtype), device=q.device)
            attend_backward(
                self.kernel, dout[:, heads], q[:, heads], keys, values, out[:, heads],
                lse[:, heads], self.rows, self.scale, dq[:, heads], dkv[0], dkv[1], once=True,
            )  # fmt: skip
            if self.group is None:
                parts.append(dkv)
                continue
            # One reduction is on its way while the next head's kernel runs.
            if sending is not None:
                sending[0].wait()
            shards = _to_ranks(dkv, self.group.size())
            mine = torch.empty_like(shards[0])
            work = _reduce_scatter(mine, shards.flatten(0, 1), group=self.group, async_op=True)
            sending = (work, shards)
            parts.append(mine)
        if sending is not None:
            sending[0].wait()
        dk, dv = torch.cat(parts, 2)
        return dq, dk, dv


def _by_head(
    q: Tensor, k: Tensor, v: Tensor, group: dist.ProcessGroup | None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(query heads, keys, values) with k and v whole in natural order: all heads at once without a
    group, else one KV head and its query heads at a time, the next one already posted."""
    if group is None:
        yield slice(None), k, v
        return
    kv_heads, ratio = k.shape[1], q.shape[1] // k.shape[1]
    posted = _post(k, v, 0, group)
    for head in range(kv_heads):
        work, received = posted[0], posted[1]
        work.wait()
        if head + 1 < kv_heads:
            posted = _post(k, v, head + 1, group)
        keys, values = _to_natural(received)
        yield slice(head * ratio, (head + 1) * ratio), keys, values


def _post(
    k: Tensor, v: Tensor, head: int, group: dist.ProcessGroup
) -> tuple[dist.Work, Tensor, Tensor]:
    mine = torch.stack((k[:, head : head + 1], v[:, head : head + 1]))
    received = mine.new_empty((group.size(), *mine.shape))
    # gloo takes only the concatenated shape. The sent tensor is returned to keep it alive.
    work = _all_gather(received.flatten(0, 1), mine, group=group, async_op=True)
    return work, received, mine


def _to_natural(shards: Tensor) -> Tensor:
    """[N, 2, B, h, s, D] of zigzag shards -> [2, B, h, N s, D] in the order of the text."""
    n, two, b, h, s, d = shards.shape
    halves = shards.unflatten(4, (2, s // 2))
    whole = shards.new_empty(two, b, h, 2 * n, s // 2, d)
    whole[:, :, :, :n] = halves[:, :, :, :, 0].movedim(0, 3)
    whole[:, :, :, n:] = halves[:, :, :, :, 1].flip(0).movedim(0, 3)
    return whole.flatten(3, 4)


def _to_ranks(whole: Tensor, n: int) -> Tensor:
    """The inverse of `_to_natural`: [2, B, h, N s, D] -> [N, 2, B, h, s, D]."""
    chunks = whole.unflatten(3, (2 * n, -1)).movedim(3, 0)
    return torch.stack((chunks[:n], chunks[n:].flip(0)), 4).flatten(4, 5).contiguous()
