"""RoPE and SwiGLU in one pass over memory each, as Triton kernels.

Inputs and outputs are bfloat16 or float16; the arithmetic is float32, rounded once at the end.
Nothing is added up between programs, so the same inputs give the same bits. Offsets into tensors
are 64-bit: a row of 512k tokens has more than 2^31 values. Importing this module needs Triton,
which torch's CUDA packages bring; running it needs a GPU, or TRITON_INTERPRET=1, slow, whose
bfloat16 is truncated instead of rounded.
"""
# mypy: disallow-untyped-defs=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048  # elements of a program of SwiGLU, 16 a thread


def rotate(x: Tensor, out: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool) -> None:
    """out = x rotated by the angles of the tables, or by their negatives with `inverse`.

    x, out [B, H, s, D] with the last axis contiguous; cos, sin [1 or B, s, D], float32, whose two
    halves are equal. Of the pairs (x1, x2) = (x[i], x[i + D/2]): x1 cos - x2 sin, x2 cos + x1 sin.
    """
    batch, heads, tokens, width = x.shape
    half = width // 2
    rows, columns = triton.next_power_of_2(heads), triton.next_power_of_2(half)
    cos, sin = (table.expand(batch, -1, -1) for table in (cos, sin))
    with torch.cuda.device_of(x):
        _rotate[(tokens, batch)](
            x, out, cos, sin, *x.stride()[:3], *out.stride()[:3], *cos.stride()[:2],
            *sin.stride()[:2], heads, HALF=half, ROWS=rows, COLUMNS=columns, INVERSE=inverse,
            num_warps=4 if rows * columns <= 2048 else 8,
        )  # fmt: skip


def swiglu(gate: Tensor, up: Tensor, out: Tensor) -> None:
    """out = silu(gate) up; all of one shape and contiguous."""
    size = gate.numel()
    with torch.cuda.device_of(gate):
        _swiglu[(triton.cdiv(size, _BLOCK),)](gate, up, out, size, BLOCK=_BLOCK)


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> None:
    """Replace gate and up by their gradients; grad is that of the result. All contiguous."""
    size = gate.numel()
    with torch.cuda.device_of(gate):
        _swiglu_backward[(triton.cdiv(size, _BLOCK),)](grad, gate, up, size, BLOCK=_BLOCK)


@triton.jit
def _rotate(
    x, out, cos, sin,
    x_batch, x_head, x_token, out_batch, out_head, out_token, cos_batch, cos_token,
    sin_batch, sin_token, heads,
    HALF: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """All heads of one token."""
    token, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    head, column = tl.arange(0, ROWS)[:, None].to(tl.int64), tl.arange(0, COLUMNS)[None, :]
    known = column < HALF
    c = tl.load(cos + batch * cos_batch + token * cos_token + column, mask=known, other=0.0)
    s = tl.load(sin + batch * sin_batch + token * sin_token + column, mask=known, other=0.0)
    if INVERSE:
        s = -s
    mask = known & (head < heads)
    first = x + batch * x_batch + token * x_token + head * x_head + column
    x1 = tl.load(first, mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(first + HALF, mask=mask, other=0.0).to(tl.float32)
    target = out + batch * out_batch + token * out_token + head * out_head + column
    tl.store(target, (x1 * c - x2 * s).to(out.dtype.element_ty), mask=mask)
    tl.store(target + HALF, (x2 * c + x1 * s).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _swiglu(gate, up, out, size, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = start + offset < size
    g = tl.load(gate + start + offset, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + start + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + start + offset, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _swiglu_backward(grad, gate, up, size, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = start + offset < size
    d = tl.load(grad + start + offset, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(gate + start + offset, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + start + offset, mask=mask, other=0.0).to(tl.float32)
    share = tl.sigmoid(g)
    slope = share * (1 + g * (1 - share))
    tl.store(gate + start + offset, (d * u * slope).to(gate.dtype.element_ty), mask=mask)
    tl.store(up + start + offset, (d * g * share).to(up.dtype.element_ty), mask=mask)
