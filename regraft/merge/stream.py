"""One output tensor made in row blocks, by several threads, in an order that changes nothing.

Each block is a task: its rows of every input in float32, the method, one rounding. Threads take
blocks as they come and results leave in order, so memory is a few blocks and the bits do not depend
on how many threads there are (inside a block torch works with one). On a GPU one thread feeds it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.merge.methods.registry import BLOCK, Block, Method
from regraft.merge.plan import Output

T = TypeVar("T")
_CUDA_BLOCK = 1 << 25
FREE_EVERY = 1 << 24  # elements after which the pages read so far are given back


class Workers:
    """Threads that do tasks at most a few ahead of the one that asks. A context manager."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.count = 1 if device.type == "cuda" else max(1, torch.get_num_threads())
        self.block = _CUDA_BLOCK if device.type == "cuda" else BLOCK
        self._pool = ThreadPoolExecutor(self.count, "regraft-merge", torch.set_num_threads, (1,))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """One task, by one thread like every other: its sums do not depend on their number."""
        return self._pool.submit(work, *arguments).result()

    def map(self, work: Callable[[int], T], count: int) -> Iterator[T]:
        """work(0), work(1), ... in order."""
        running: deque[Future[T]] = deque()
        try:
            for index in range(count):
                running.append(self._pool.submit(work, index))
                if len(running) > self.count:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


@dataclass
class Tally:
    """What is learnt of one tensor on the way. `samples`: inputs, reference and result of some
    rows, float32, in this order, for the conflict report."""

    squared_change: float = 0.0
    squared_loss: float = 0.0
    squared_reference: float = 0.0
    samples: list[list[Tensor]] = field(default_factory=list)

    def facts(self) -> dict[str, float]:
        return {
            "squared_change": self.squared_change,
            "squared_loss": self.squared_loss,
            "squared_reference": self.squared_reference,
        }


def merged(
    output: Output, method: Method, seed: int, scale: float | None, workers: Workers, tally: Tally
) -> Iterator[Tensor]:
    """The output's rows in blocks of its dtype, on the CPU; `tally` is filled as they are made."""
    stream = _Stream(output, method, workers)
    for one, name in output.tensors:
        one.hold(name)
    try:
        state = method.prepare(stream.blocks, stream.shape, output.params, seed)
        for stored, part in workers.map(stream.task(state, seed, scale), len(stream.starts)):
            tally.squared_change += part[0]
            tally.squared_loss += part[1]
            tally.squared_reference += part[2]
            tally.samples.append(part[3])
            yield stored
    finally:
        for one, name in output.tensors:
            one.release(name)
    if not all(map(math.isfinite, tally.facts().values())):
        raise InputError(
            f"Merging '{output.name}' gives NaN or infinite numbers, or numbers that do not fit "
            f"{output.dtype}; use smaller weights or another out_dtype."
        )


class _Stream:
    """Blocks of one output tensor's inputs."""

    def __init__(self, output: Output, method: Method, workers: Workers) -> None:
        self.output, self.method, self.workers = output, method, workers
        self.shape = output.shape or (1,)
        whole = len(self.shape) < 2 or not method.blockwise
        row = math.prod(self.shape[1:])
        self.rows = self.shape[0]
        self.height = self.rows if whole else max(1, workers.block // max(1, row))
        self.row = row
        self.starts = range(0, self.rows, max(1, self.height))
        double = any(one.info(name).dtype == torch.float64 for one, name in output.tensors)
        self.dtype = torch.float64 if double else torch.float32
        self.stride = sample_stride(self.shape)
        self._freed = 0

    def read(self, rows: slice) -> Block:
        device = self.workers.device
        inputs = [one.rows(name, rows, self.dtype, device) for one, name in self.output.inputs]
        base = self.output.base
        self._free(rows)
        return inputs, None if base is None else base[0].rows(base[1], rows, self.dtype, device)

    def blocks(self, step: int = 1) -> Iterator[Block]:
        """The methods' `Blocks`, read ahead by the threads."""
        height = self.height * step
        starts = range(0, self.rows, max(1, height))

        def read(index: int) -> Block:
            return self.read(slice(starts[index], min(self.rows, starts[index] + height), step))

        return self.workers.map(read, len(starts))

    def task(
        self, state: Any, seed: int, scale: float | None
    ) -> Callable[[int], tuple[Tensor, tuple[float, float, float, list[Tensor]]]]:
        output, method = self.output, self.method

        def work(index: int) -> tuple[Tensor, tuple[float, float, float, list[Tensor]]]:
            start = self.starts[index]
            rows = slice(start, min(self.rows, start + self.height))
            inputs, base = self.read(rows)
            result = method.combine(
                inputs, base, output.params, state, offset=start * self.row, generator_seed=seed
            )
            if scale is not None and base is not None:
                result = torch.lerp(base, result, scale)
            reference = inputs[output.anchor] if base is None else base
            stored = result.to(output.dtype)
            own = range(-start % self.stride, rows.stop - start, self.stride)
            sample = [t[own.start :: self.stride].clone() for t in (*inputs, reference, result)]
            change = torch.sub(result, reference)
            numbers = float(torch.linalg.vector_norm(change)) ** 2
            loss = 0.0
            if stored.dtype != result.dtype:
                torch.sub(result, stored, out=change)
                loss = float(torch.linalg.vector_norm(change)) ** 2
            size = float(torch.linalg.vector_norm(reference)) ** 2
            shape = output.shape if len(self.starts) == 1 else stored.shape
            return stored.cpu().reshape(shape), (numbers, loss, size, sample)

        return work

    def _free(self, rows: slice) -> None:
        self._freed += (rows.stop - rows.start) * self.row
        if self._freed >= FREE_EVERY:
            self._freed = 0
            for one, name in self.output.tensors:
                one.free(name)


def sample_stride(shape: tuple[int, ...]) -> int:
    """Every how many rows one is kept for the conflict report: all of a vector, else about half
    a million numbers and at least 64 rows."""
    if len(shape) < 2:
        return 1
    wanted = max(64, (1 << 19) // max(1, math.prod(shape[1:])))
    return max(1, shape[0] // wanted)
