"""Bytes of live tensors and of messages, counted while a step runs by shape alone.

Under FakeTensorMode tensors have shapes, types and lifetimes but no numbers. Every storage is
counted from its first appearance to its end, in the class that it was made in.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST = "host"
"""The class of what waits in host memory; it is no part of the device's bytes."""
GATHERED = "gathered"
"""Parameters that FSDP holds whole at a time."""


@dataclass
class Peak:
    """bytes: the most that lived on the device at a time; of: by class, then."""

    bytes: int
    of: Counter[str]


@dataclass
class _Storage:
    size: int
    kind: str


class LiveBytes(TorchDispatchMode):
    """Counts within `with`. kind: the class of what is made now. peaks: by phase of the step; a
    storage may change its class by `relabel`. sent: bytes that leave this process, by collective.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kind = self.phase = ""
        self.live: Counter[str] = Counter()
        self.peaks: dict[str, Peak] = {}
        self.most_on_host = 0
        self.sent: Counter[str] = Counter()
        self.operators = 0
        self._storages: dict[int, _Storage] = {}

    def start(self) -> None:
        """Forget all but what lives."""
        self.peaks, self.most_on_host = {}, self.live[HOST]
        self.sent, self.operators = Counter(), 0

    def add(self, tensor: torch.Tensor, kind: str | None = None) -> None:
        """Count a tensor's storage, if it is new."""
        storage = _local(tensor).untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        one = self._storages[key] = _Storage(storage.nbytes(), kind or self.kind)
        self._change(one, one.size)

        def end() -> None:
            gone = self._storages.pop(key, None)
            if gone is not None:
                self.live[gone.kind] -= gone.size

        weakref.finalize(storage, end)

    def relabel(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Count these, and what is known of them, as of another class."""
        for tensor in tensors:
            self.add(tensor, kind)
            one = self._storages[_local(tensor).untyped_storage()._cdata]
            self.live[one.kind] -= one.size
            one.kind = kind
            self.live[kind] += one.size

    def relabel_all(self, old: str, new: str) -> None:
        """Count all that lives in a class as of another."""
        for one in self._storages.values():
            if one.kind == old:
                one.kind = new
        self.live[new] += self.live.pop(old, 0)

    @contextmanager
    def making(self, kind: str) -> Iterator[None]:
        """What is made inside is of this class."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def _change(self, one: _Storage, size: int) -> None:
        self.live[one.kind] += size
        if one.kind == HOST:
            self.most_on_host = max(self.most_on_host, self.live[HOST])
            return
        total = self.live.total() - self.live[HOST]
        peak = self.peaks.get(self.phase)
        if peak is None or total > peak.bytes:
            self.peaks[self.phase] = Peak(total, Counter(self.live))

    @contextmanager
    def resizes(self) -> Iterator[None]:
        """Follow storages that change their size, as FSDP's do to make and free whole parameters;
        no operator shows that."""
        real: Callable[..., Any] = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            one = self._storages.get(storage._cdata)
            if one is not None:
                self.live[one.kind] -= one.size
                one.kind, one.size = GATHERED, int(size)
                self._change(one, one.size)
            return real(storage, size)

        torch.UntypedStorage.resize_ = resize  # type: ignore
        try:
            yield
        finally:
            torch.UntypedStorage.resize_ = real  # type: ignore

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        if func.namespace == "c10d":
            name, size = _message(func.__name__.split(".")[0], args)
            self.sent[name] += size
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return getattr(tensor, "_local_tensor", tensor)


_NAMES = {
    "_allgather_base_": "all-gather", "_reduce_scatter_base_": "reduce-scatter",
    "alltoall_base_": "all-to-all", "send": "send", "recv_": "receive",
    "allreduce_": "all-reduce",
}  # fmt: skip


def _message(operator: str, args: Any) -> tuple[str, int]:
    """(what it is called, bytes that this process sends). The first two arguments are the result
    and what is sent; of gathers and scatters N - 1 of N parts travel, as in a ring."""
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    name = _NAMES.get(operator, operator)
    if name == "all-gather":
        return name, sizes[0] - sizes[1]
    if name == "reduce-scatter":
        return name, sizes[1] - sizes[0]
    return name, 0 if name == "receive" else sizes[0] if sizes else 0
