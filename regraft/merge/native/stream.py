"""Merging one tensor in row blocks, and several tensors in threads.

For each block a few rows of every input are read in float32, merged, and rounded once. One thread
does all work on a tensor, with torch set to one thread inside it: memory is a few blocks a thread,
all cores are busy, and no bit depends on their number. Methods that need a whole tensor merge one
tensor at a time with all of torch's threads, and so does a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.merge.methods.blockwise.blocks import BLOCK, Block
from regraft.merge.methods.registry import Method
from regraft.merge.native.plan import Output

_CUDA_BLOCK = 1 << 25


def threads(method: Method, device: torch.device) -> int:
    """How many tensors are merged at a time."""
    return torch.get_num_threads() if method.blockwise and device.type == "cpu" else 1


class Tally:
    """Statistics of one tensor, collected while it is merged.

    samples: evenly spaced rows of the inputs, the reference and the result, in this order, for the
    report on conflicts. They are buffers of full size from the start, because a small tensor that
    outlives its block would pin the free megabytes around it.
    """

    def __init__(self) -> None:
        self.squared_change = self.squared_loss = self.squared_reference = 0.0
        self.samples: list[Tensor] = []
        self._filled = 0

    def add(
        self, tensors: list[Tensor], stored: Tensor, start: int, shape: tuple[int, ...]
    ) -> None:
        """Add a block that begins at row `start` of a tensor of this shape. tensors: the inputs,
        the reference and the result; stored: the result after rounding."""
        *_, reference, result = tensors
        stride = sample_stride(shape)
        if not self.samples:
            count = len(range(0, shape[0], stride))
            self.samples = [torch.empty(count, *shape[1:], dtype=t.dtype) for t in tensors]
        rows = slice(-start % stride, None, stride)
        chosen = [tensor[rows] for tensor in tensors]
        for buffer, part in zip(self.samples, chosen, strict=True):
            buffer[self._filled : self._filled + len(part)].copy_(part)
        self._filled += len(chosen[0])
        self.squared_reference += _squared(reference)
        change = torch.sub(result, reference)
        self.squared_change += _squared(change)
        if stored.dtype != result.dtype:
            self.squared_loss += _squared(torch.sub(result, change.copy_(stored), out=change))

    @property
    def finite(self) -> bool:
        """Whether every number so far was finite."""
        sums = (self.squared_change, self.squared_loss, self.squared_reference)
        return all(map(math.isfinite, sums))


def merged(
    output: Output,
    method: Method,
    seed: int,
    scale: float | None,
    device: torch.device,
    tally: Tally,
) -> Iterator[Tensor]:
    """Merge one tensor: yields its rows in blocks of the output's dtype, on the CPU.

    seed: the tensor's own; scale: factor on the merged change, None for 1; tally: gets the
    statistics. Raises InputError at the end if a number was not finite.
    """
    stream = _Stream(output, method, device)
    for one, name in output.tensors:
        one.load_change(name)
    try:
        state = method.prepare(stream.blocks, stream.shape, output.params, seed)
        for rows, (inputs, base) in zip(stream.spans(), stream.blocks(), strict=True):
            result = method.combine(
                inputs, base, output.params, state,
                offset=rows.start * stream.row, generator_seed=seed,
            )  # fmt: skip
            if scale is not None and base is not None:
                result = torch.lerp(base, result, scale)
            reference = inputs[output.anchor] if base is None else base
            stored = result.to(output.dtype)
            tally.add([*inputs, reference, result], stored, rows.start, stream.shape)
            yield stored.cpu() if output.shape else stored.cpu().reshape(())
    finally:
        for one, name in output.tensors:
            one.release_change(name)
    if not tally.finite:
        raise InputError(
            f"Merging '{output.name}' gives NaN or infinite numbers, or numbers that do not fit "
            f"{output.dtype}; use smaller weights or another out_dtype."
        )


class _Stream:
    """The inputs of one output tensor as blocks (see `methods.blockwise.blocks`)."""

    def __init__(self, output: Output, method: Method, device: torch.device) -> None:
        self.output, self.device = output, device
        self.shape = output.shape or (1,)
        self.row = math.prod(self.shape[1:])
        whole = len(self.shape) < 2 or not method.blockwise
        size = _CUDA_BLOCK if device.type == "cuda" else BLOCK
        self.height = max(1, self.shape[0] if whole else size // max(1, self.row))
        double = any(one.info(name).dtype == torch.float64 for one, name in output.tensors)
        self.dtype = torch.float64 if double else torch.float32

    def spans(self, step: int = 1) -> Iterator[slice]:
        """The rows of each block; with a step, of a block of the same size from `step` times as
        many rows."""
        height = self.height * step
        for start in range(0, self.shape[0], height):
            yield slice(start, min(self.shape[0], start + height), step)

    def blocks(self, step: int = 1) -> Iterator[Block]:
        output = self.output
        for rows in self.spans(step):
            inputs = [one.rows(n, rows, self.dtype, self.device) for one, n in output.inputs]
            base = None
            if output.base is not None:
                one, name = output.base
                base = one.rows(name, rows, self.dtype, self.device)
            yield inputs, base


def sample_stride(shape: tuple[int, ...]) -> int:
    """Distance of the rows that are sampled for the report on conflicts: 1 for vectors; else such
    that 64 to 256 rows are taken, about half a million numbers."""
    if len(shape) < 2:
        return 1
    count = min(256, max(64, (1 << 19) // max(1, math.prod(shape[1:]))))
    return max(1, shape[0] // count)


def _squared(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2
