"""extended - base in float32, one tensor at a time, with its norms.

On the CPU two buffers of the largest shape are reused for every module (fresh memory costs more in
page faults than the subtraction), filled in blocks that stay in cache. On a GPU the next pair is
on its way while the current one is decomposed (`upload`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.adapters.extract.select import Module, shared_shape
from regraft.adapters.extract.upload import uploaded
from regraft.checkpoint.read.source import Checkpoint
from regraft.device import fast_bfloat16, workers
from regraft.errors import CheckpointError, InputError
from regraft.lowrank.noise import Noise, rounding_noise

_BLOCK = 1 << 18  # elements of a block: 1 MB in float32, it stays in cache between operations
_FLOAT32_PRODUCTS = (1e-50, 1e70)  # ||x||^2 ||y||^2 where <x, y> neither vanishes nor overflows
Each = Callable[[Callable[[int, int], None], int], None]  # see `regraft.device.workers`


@dataclass
class Delta:
    """extended - base of one module, (m, n) in float32.

    half: the same in bfloat16, where the device multiplies that faster. squared_norm, squared_base:
    of delta and base. dot: <base, delta>. noise: of rounding the two checkpoints.
    """

    matrix: Tensor
    half: Tensor | None
    squared_norm: float
    squared_base: float
    dot: float
    noise: Noise


def deltas(
    b: Checkpoint, e: Checkpoint, modules: list[Module], device: torch.device
) -> Iterator[tuple[Module, Delta]]:
    """Each module with its delta, whose tensors the next one overwrites on a CPU.

    Raises CheckpointError for NaN, infinity and differences that overflow float32.
    """
    if not modules:
        return
    if device.type == "cuda":
        yield from _cuda_deltas(b, e, modules, device)
        return
    largest = max(math.prod(module.shape) for module in modules)
    full = torch.empty(largest, dtype=torch.float32)
    half = torch.empty(largest, dtype=torch.bfloat16) if fast_bfloat16(device) else None
    with workers() as each:
        for module in modules:
            rows, columns = module.shape
            delta = full[: rows * columns].view(rows, columns)
            half_delta = half[: rows * columns].view(rows, columns) if half is not None else None
            x = b.rows(module.tensor, 0, rows)
            y = e.rows(module.tensor, 0, rows)
            sums = _subtract(x, y, delta, half_delta, each)
            _refuse_nonfinite(b, e, module.tensor, sums)
            noise = rounding_noise(x, y)
            del x, y
            yield module, Delta(delta, half_delta, sums[0], sums[1], sums[2], noise)


def _subtract(
    x: Tensor, y: Tensor, delta: Tensor, half_delta: Tensor | None, each: Each
) -> list[float]:
    """Compute delta = y - x and its bfloat16 copy. Returns [||delta||^2, ||x||^2, <x, delta>].

    The sums do not depend on how threads share the blocks.
    """
    rows, columns = x.shape
    step = max(1, _BLOCK // columns)
    sums = [[0.0, 0.0, 0.0] for _ in range(0, rows, step)]

    def work(first: int, last: int) -> None:
        scratch = torch.empty(step, columns)
        for block in range(first, last):
            span = slice(block * step, min(rows, (block + 1) * step))
            base = scratch[: span.stop - span.start].copy_(x[span])
            part = delta[span].copy_(y[span]).sub_(base)
            if half_delta is not None:
                half_delta[span].copy_(part)
            _add(sums[block], base, part)

    each(work, len(sums))
    return [math.fsum(column) for column in zip(*sums, strict=True)]


def _cuda_deltas(
    b: Checkpoint, e: Checkpoint, modules: list[Module], device: torch.device
) -> Iterator[tuple[Module, Delta]]:
    """The same on a GPU, where the next pair arrives while this one is decomposed."""
    half = fast_bfloat16(device)
    for module, (x, y) in uploaded((b, e), modules, device):
        base = x.float()
        delta = y.float() - base
        sums = [0.0, 0.0, 0.0]
        _add(sums, base, delta)
        del base
        _refuse_nonfinite(b, e, module.tensor, sums)
        noise = rounding_noise(x, y)
        del x, y
        half_delta = delta.bfloat16() if half else None
        yield module, Delta(delta, half_delta, sums[0], sums[1], sums[2], noise)
        del delta, half_delta


def compare(b: Checkpoint, e: Checkpoint, name: str) -> list[float]:
    """[||d||^2, ||b||^2, <b, d>], d = e - b, of a tensor of any shape, block by block."""
    sums = [0.0, 0.0, 0.0]
    for x, y in _blocks(b, e, name):
        base = x.float()
        _add(sums, base, y.float() - base)
    _refuse_nonfinite(b, e, name, sums)
    return sums


def _add(sums: list[float], base: Tensor, delta: Tensor) -> None:
    """Add [||delta||^2, ||base||^2, <base, delta>] of one block, accumulated in float64."""
    squares = [float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2 for x in (delta, base)]
    dot = float(torch.dot(base.flatten(), delta.flatten()))
    if not _FLOAT32_PRODUCTS[0] < squares[0] * squares[1] < _FLOAT32_PRODUCTS[1]:
        dot = float(torch.dot(base.flatten().double(), delta.flatten().double()))
    for i, value in enumerate((*squares, dot)):
        sums[i] += value


def _blocks(b: Checkpoint, e: Checkpoint, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    shape = shared_shape(b, e, name)
    count = math.prod(shape)
    for i in range(0, count, _BLOCK):
        stop = min(i + _BLOCK, count)
        yield b.elements(name, i, stop), e.elements(name, i, stop)


def difference(b: Checkpoint, e: Checkpoint, name: str, dtype: torch.dtype) -> Tensor:
    """The dense difference of a tensor: vectors in float32, matrices in the adapter's dtype."""
    shape = shared_shape(b, e, name)
    dense = torch.empty(math.prod(shape), dtype=difference_dtype(shape, dtype))
    for i, (x, y) in enumerate(_blocks(b, e, name)):
        block = dense[i * _BLOCK : (i + 1) * _BLOCK]
        block.copy_(y.float() - x.float())
        if not torch.isfinite(block).all():
            raise InputError(
                f"The difference of '{name}' does not fit {dense.dtype}; give another --dtype."
            )
    return dense.view(shape)


def difference_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> torch.dtype:
    """Vectors (norms, biases) keep float32: they are small and every digit counts."""
    return torch.float32 if len(shape) < 2 else dtype


def _refuse_nonfinite(b: Checkpoint, e: Checkpoint, name: str, sums: list[float]) -> None:
    if math.isfinite(sums[0]) and math.isfinite(sums[1]):
        return
    for model in (b, e):
        if not model.is_finite(name):
            raise CheckpointError(
                f"Tensor '{name}' of {model.name} holds NaN or infinite numbers; give a sound "
                "checkpoint."
            )
    raise CheckpointError(
        f"Tensor '{name}' of {b.name} or {e.name} holds numbers whose difference overflows "
        "float32; no trained weight is that large, give a sound checkpoint."
    )
