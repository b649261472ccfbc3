"""Bytes of live tensors and of messages, counted while a step runs by shape alone.

Under FakeTensorMode tensors have shapes, types and lifetimes but no numbers. Every storage is
counted from its first appearance to its end, in the class that it was made in.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST = "host"
"""Class of tensors in host memory, which are not counted among the device's bytes."""
GATHERED = "gathered"
"""Class of the whole parameters that FSDP holds for a while."""


@dataclass
class Peak:
    """bytes: highest sum of the device's live bytes; classes: its parts."""

    bytes: int
    classes: Counter[str]


@dataclass
class _Storage:
    size: int
    kind: str


class LiveBytes(TorchDispatchMode):
    """Counts tensors and messages within `with`.

    kind: class of tensors allocated from now on; `relabel` changes it. phase: of the step, from now
    on. peaks: by phase. host_peak: of class HOST. sent: bytes that leave this process, by
    collective. operators: number of calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kind = self.phase = ""
        self.live: Counter[str] = Counter()
        self.peaks: dict[str, Peak] = {}
        self.host_peak = 0
        self.sent: Counter[str] = Counter()
        self.operators = 0
        self._storages: dict[int, _Storage] = {}

    def add(self, tensor: torch.Tensor, kind: str | None = None) -> None:
        """Count a tensor's storage, unless it is counted already."""
        storage = getattr(tensor, "_local_tensor", tensor).untyped_storage()  # of a DTensor: local
        key = storage._cdata
        if key in self._storages:
            return
        counted = self._storages[key] = _Storage(storage.nbytes(), kind or self.kind)
        self._change(counted, counted.size)

        def end() -> None:
            freed = self._storages.pop(key, None)
            if freed is not None:
                self.live[freed.kind] -= freed.size

        weakref.finalize(storage, end)

    def relabel(self, old: str, new: str) -> None:
        """Move all live tensors of class `old` to class `new`."""
        for storage in self._storages.values():
            if storage.kind == old:
                storage.kind = new
        self.live[new] += self.live.pop(old, 0)

    @contextmanager
    def allocating(self, kind: str) -> Iterator[None]:
        """Tensors allocated inside are of class `kind`."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def _change(self, storage: _Storage, size: int) -> None:
        self.live[storage.kind] += size
        if storage.kind == HOST:
            self.host_peak = max(self.host_peak, self.live[HOST])
            return
        if not self.phase:
            return
        total = self.live.total() - self.live[HOST]
        peak = self.peaks.get(self.phase)
        if peak is None or total > peak.bytes:
            self.peaks[self.phase] = Peak(total, Counter(self.live))

    @contextmanager
    def resizes(self) -> Iterator[None]:
        """Count resized storages too: FSDP allocates and frees whole parameters by resizing, which
        calls no operator."""
        real: Callable[..., Any] = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            counted = self._storages.get(storage._cdata)
            if counted is not None:
                self.live[counted.kind] -= counted.size
                counted.kind, counted.size = GATHERED, int(size)
                self._change(counted, counted.size)
            return real(storage, size)

        with mock.patch.object(torch.UntypedStorage, "resize_", resize):
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            func is torch.ops.prim.device.default
        ):  # a fake tensor's .device, almost half of all calls
            return func(*args)
        self.operators += 1
        if func.namespace == "c10d":
            name, size = _message(func.__name__.split(".")[0], args)
            self.sent[name] += size
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result


_NAMES = {
    "_allgather_base_": "all-gather", "_reduce_scatter_base_": "reduce-scatter",
    "alltoall_base_": "all-to-all", "send": "send", "recv_": "receive",
    "allreduce_": "all-reduce",
}  # fmt: skip


def _message(operator: str, args: Any) -> tuple[str, int]:
    """(name of a collective, bytes that this process sends). The first two tensors are output and
    input; of gathers and scatters N - 1 of N parts travel, as in a ring."""
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    name = _NAMES.get(operator, operator)
    if name == "all-gather":
        return name, sizes[0] - sizes[1]
    if name == "reduce-scatter":
        return name, sizes[1] - sizes[0]
    return name, 0 if name == "receive" else sizes[0] if sizes else 0
