"""Run a kernel over the spans of a batch, joining what each contributes.

`rows` holds one list of spans for every row of the batch, or a single one that all rows share.
Causal spans that follow one another in both queries and keys (documents) go to the kernel as one
packed call, a `run`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from regraft.parallel.kernels.kernel import Grads, Kernel, accumulator, merge
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
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float, out: Tensor,
    lse: Tensor, *, once: bool = False,
) -> None:  # fmt: skip
    """Join the attention of q [B, H, Q, D] to k, v [B, Hk, K, D] into out and lse, in place.

    `once` says that every query is in one span and has seen nothing before: its result is stored,
    and out may be in q's own type.
    """
    for batch, run in _runs(rows):
        queries, keys = _extent(batch, run)
        result = run_forward(kernel, q[queries], k[keys], v[keys], run, scale)
        if once:
            out[queries], lse[queries] = result
        else:
            merge(out[queries], lse[queries], *result)


def attend_backward(
    kernel: Kernel, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    rows: Rows, scale: float, dq: Tensor, dk: Tensor, dv: Tensor, *, once: bool = False,
) -> None:  # fmt: skip
    """Add the gradients of the same spans to dq (with `once`: store them), dk and dv, in place.
    out and lse are final."""
    for batch, run in _runs(rows):
        queries, keys = _extent(batch, run)
        grads = run_backward(
            kernel, dout[queries], q[queries], k[keys], v[keys], out[queries], lse[queries], run,
            scale,
        )  # fmt: skip
        if once:
            dq[queries] = grads[0]
        else:
            dq[queries] += grads[0]
        dk[keys] += grads[1]
        dv[keys] += grads[2]


def single_run(rows: Rows) -> Sequence[Span] | None:
    """The spans, where all rows share them and they are one kernel call; else None."""
    runs = [run for _, run in _runs(rows)]
    return runs[0] if len(rows) == len(runs) == 1 else None


def run_forward(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, run: Sequence[Span], scale: float
) -> tuple[Tensor, Tensor]:
    """(out, lse) of a run whose queries and keys are exactly q and k."""
    if len(run) > 1:
        return kernel.packed(q, k, v, _lengths(run), scale)
    return kernel.forward(q, k, v, run[0].causal, scale)


def run_backward(
    kernel: Kernel, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    run: Sequence[Span], scale: float,
) -> Grads:  # fmt: skip
    """(dq, dk, dv) of the same."""
    if len(run) > 1:
        return kernel.packed_backward(dout, q, k, v, out, lse, _lengths(run), scale)
    return kernel.backward(dout, q, k, v, out, lse, run[0].causal, scale)


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
    return [(s.q1 - s.q0, s.k1 - s.k0) for s in run]
