"""Read pairs of tensors from disk to a GPU while the previous pair is decomposed.

Several threads read parts of a tensor straight into pinned memory, from where it goes to the GPU on
a stream of its own. Each model has two buffers, which alternate: nothing is allocated from module
to module, and the disk is the limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from regraft.adapters.extract.select import Module
from regraft.checkpoint.read.source import Checkpoint

_THREADS = 4
_PART = 1 << 24  # bytes that a thread reads at a time

Pair = tuple[Tensor, Tensor]


def uploaded(
    models: tuple[Checkpoint, Checkpoint], modules: list[Module], device: torch.device
) -> Iterator[tuple[Module, Pair]]:
    """Each module with its tensor of both models on the device, ready for its current stream. Drop
    each pair before requesting the next, which reuses its memory.

    Raises CheckpointError where a file ends before its tensor.
    """
    if not modules:
        return
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(_THREADS) as readers:
        uploader = _Uploader(models, modules, device, readers)
        waiting = ahead.submit(uploader.send, modules[0])
        for index, module in enumerate(modules):
            pair, sent = waiting.result()
            if index + 1 < len(modules):
                waiting = ahead.submit(uploader.send, modules[index + 1])
            torch.cuda.current_stream(device).wait_event(sent)
            yield module, pair
            del pair


class _Uploader:
    def __init__(
        self,
        models: tuple[Checkpoint, Checkpoint],
        modules: list[Module],
        device: torch.device,
        readers: ThreadPoolExecutor,
    ) -> None:
        self.models, self.device, self.readers = models, device, readers
        self.compute = torch.cuda.current_stream(device)
        self.side = torch.cuda.Stream(device)
        self.current = 0  # index of the buffers in use
        largest = [max(_bytes(model, module) for module in modules) for model in models]
        self.buffers = [[_pinned(size) for size in largest] for _ in range(2)]
        self.sent: list[torch.cuda.Event | None] = [None, None]

    def send(self, module: Module) -> tuple[Pair, torch.cuda.Event]:
        """The pair, and the event of its arrival. Its memory belongs to the computing stream, so
        it is free for the next pair when that stream no longer uses it."""
        self.current = 1 - self.current
        buffers, last = self.buffers[self.current], self.sent[self.current]
        if last is not None:
            last.synchronize()  # the buffers have been copied
        reads = [self._read(m, module, b) for m, b in zip(self.models, buffers, strict=True)]
        pair = []
        for model, buffer, parts in zip(self.models, buffers, reads, strict=True):
            for part in parts:
                part.result()
            info = model.tensors[module.tensor]
            stored = buffer[: _bytes(model, module)].view(info.dtype).view(module.shape)
            with torch.cuda.stream(self.compute):
                tensor = torch.empty(module.shape, dtype=info.dtype, device=self.device)
            self.side.wait_stream(self.compute)  # what used this memory before is done
            with torch.cuda.stream(self.side):
                tensor.copy_(stored, non_blocking=True)
            pair.append(tensor)
        event = torch.cuda.Event()
        event.record(self.side)
        self.sent[self.current] = event
        return (pair[0], pair[1]), event

    def _read(self, model: Checkpoint, module: Module, buffer: Tensor) -> list[Future[None]]:
        size = _bytes(model, module)
        view = buffer.numpy().data
        return [
            self.readers.submit(
                model.read_into, view[start : min(start + _PART, size)], module.tensor, start
            )
            for start in range(0, size, _PART)
        ]


def _bytes(model: Checkpoint, module: Module) -> int:
    return math.prod(module.shape) * model.tensors[module.tensor].dtype.itemsize


def _pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
