"""Layer inputs on the host: device memory is free again in the computing stream's order.

There is no GPU here: streams and events are stand-ins that record which stream waits for which
work. On a GPU that lags behind, the host knows no more than this, so a tensor that is freed too
early or too late by this record is so there.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager

import pytest
import torch

from regraft.train.step import memory
from regraft.train.step.memory import HostStore


class Stream:
    def __init__(self, name: str = "side") -> None:
        self.name = name
        self.waited: set[int] = set()

    def wait_stream(self, other: Stream) -> None:
        self.waited |= other.waited

    def wait_event(self, event: Event) -> None:
        self.waited |= event.after


class Event:
    """Never seen finished by the host."""

    def record(self, stream: Stream) -> None:
        self.after = set(stream.waited)

    def query(self) -> bool:
        return False


@pytest.fixture
def gpu(monkeypatch):
    """(the computing stream, the streams entered): CUDA's interface that HostStore uses."""
    compute, entered = Stream("compute"), []

    @contextmanager
    def stream(side):
        entered.append(side)
        yield
        entered.pop()

    def refuse(*_):
        raise AssertionError("record_stream frees a block only when the host sees the copy done")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: compute)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", refuse)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(HostStore, "_buffer", lambda self, like: torch.empty_like(like))
    return compute, entered


def test_inputs_are_held_until_the_computing_stream_waits_for_their_copy(gpu, monkeypatch):
    compute, _ = gpu
    copies, alive, early = 0, set(), []
    to_pieces = memory.to_pieces

    def counted(tensor, buffer):
        nonlocal copies
        copies += 1
        store.copies._stream.waited.add(copies)  # the copy is work of the side stream
        return to_pieces(tensor, buffer)

    def freed(number):
        alive.discard(number)
        if number not in compute.waited:
            early.append(number)

    monkeypatch.setattr(memory, "to_pieces", counted)
    store, handles = HostStore(), []
    most = 0
    for number in range(1, 33):
        tensor = torch.full((4,), float(number))
        # views share the storage, which is what the allocator frees
        weakref.finalize(tensor.untyped_storage(), freed, number)
        alive.add(number)
        handles.append(store.pack(tensor))
        del tensor
        most = max(most, len(alive))
    assert most <= 3
    assert not early
    for number, handle in reversed(list(enumerate(handles, 1))):
        assert float(store.unpack(handle)[0]) == number
    assert not alive
    assert not early
    assert store.moved == 32 * 16


def test_fetched_tensors_are_the_computing_streams_memory(gpu, monkeypatch):
    _, entered = gpu
    allocated_on = []
    empty = torch.empty

    def watched(*sizes, **how):
        allocated_on.append(entered[-1].name if entered else "compute")
        return empty(*sizes, **how)

    store = HostStore()
    handles = [store.pack(torch.full((4,), float(i))) for i in range(4)]
    monkeypatch.setattr(torch, "empty", watched)
    for i in (3, 2, 1, 0):
        assert float(store.unpack(handles[i])[0]) == i
    assert set(allocated_on) == {"compute"}
    assert len(allocated_on) == 4
    assert len(store) == 0


def test_what_stays_is_returned_as_it_is_and_the_layer_before_is_fetched(gpu):
    """Device memory in the backward pass is as without: the last layer's input and the one that is
    fetched ahead."""
    store = HostStore()
    first, second, last = (torch.full((4,), float(i)) for i in range(3))
    handles = [store.pack(first), store.pack(second, stays=True), store.pack(last, stays=True)]
    assert store.moved == 16
    assert store.unpack(handles[2]).data_ptr() == last.data_ptr()
    assert store.unpack(handles[1]).data_ptr() == second.data_ptr()
    assert set(store._fetched) == {handles[0]}
    assert float(store.unpack(handles[0])[0]) == 0
    assert len(store) == 0


def test_the_tensors_of_a_layer_and_of_the_one_before_are_fetched_together(gpu):
    store, layers, layout = HostStore(), [], (1, 2, 3, 4)
    for _ in range(4):
        made = [torch.randn(layout), torch.randn(1, 3, 2, 4).transpose(1, 2), torch.randn(1, 2, 3)]
        handles = [store.pack(made[0]), store.pack_more(made[1]), store.pack_more(made[2])]
        layers.append((handles, made))
    for number in (3, 2, 1, 0):
        handles, made = layers[number]
        for i, (handle, tensor) in enumerate(zip(handles, made, strict=True)):
            result = store.unpack(handle)
            assert torch.equal(result, tensor)
            assert result.stride() == tensor.stride()
            before = layers[number - 1][0] if number else []
            assert set(store._fetched) == {*handles[i + 1 :], *before}
    assert len(store) == 0
