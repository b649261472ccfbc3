"""Run a kernel over the spans of a batch, joining what each contributes.

`rows` holds one list of spans for every row of the batch, or a single one that all rows share.
Causal spans that follow one another in both queries and keys (documents) go to the kernel as one
packed call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from regraft.parallel.kernels import Kernel, accumulator, merge
from regraft.parallel.layout import Span

Rows = Sequence[Sequence[Span]]


def empty_result(q: Tensor) -> tuple[Tensor, Tensor]:
    """(out, lse) of q [B, H, Q, D] before any key was seen, in the accumulator's type."""
    wide = accumulator(q.dtype)
    return (
        torch.zeros_like(q, dtype=wide, memory_format=torch.contiguous_format),
        q.new_full(q.shape[:-1], -torch.inf, dtype=wide),
    )


def attend(
    kernel: Kernel,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Rows,
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Join the attention of q [B, H, Q, D] to k, v [B, Hk, K, D] into out and lse, in place."""
    for batch, run in _runs(rows):
        queries, keys = _extent(batch, run)
        block = (q[queries], k[keys], v[keys])
        if len(run) > 1:
            result = kernel.packed(*block, _lengths(run), scale)
        else:
            result = kernel.forward(*block, run[0].causal, scale)
        merge(out[queries], lse[queries], *result)


def attend_backward(
    kernel: Kernel,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: Rows,
    scale: float,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Add the gradients of the same spans to dq, dk and dv, in place; out and lse are final."""
    for batch, run in _runs(rows):
        queries, keys = _extent(batch, run)
        block = (dout[queries], q[queries], k[keys], v[keys], out[queries], lse[queries])
        if len(run) > 1:
            grads = kernel.packed_backward(*block, _lengths(run), scale)
        else:
            grads = kernel.backward(*block, run[0].causal, scale)
        for total, where, part in zip((dq, dk, dv), (queries, keys, keys), grads, strict=True):
            total[where] += part


def _runs(rows: Rows) -> Iterator[tuple[slice, list[Span]]]:
    for i, spans in enumerate(rows):
        batch = slice(None) if len(rows) == 1 else slice(i, i + 1)
        run: list[Span] = []
        for span in spans:
            if run and not _follows(run[-1], span):
                yield batch, run
                run = []
            run.append(span)
        if run:
            yield batch, run


def _follows(a: Span, b: Span) -> bool:
    return a.causal and b.causal and a.q1 == b.q0 and a.k1 == b.k0


def _extent(
    batch: slice, run: Sequence[Span]
) -> tuple[tuple[slice, slice, slice], tuple[slice, slice, slice]]:
    everything = slice(None)
    return (
        (batch, everything, slice(run[0].q0, run[-1].q1)),
        (batch, everything, slice(run[0].k0, run[-1].k1)),
    )


def _lengths(run: Sequence[Span]) -> list[tuple[int, int]]:
    assert all(_follows(a, b) for a, b in pairwise(run))
    return [(s.q1 - s.q0, s.k1 - s.k0) for s in run]
