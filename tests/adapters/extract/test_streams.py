"""Several decompositions at once on a GPU, without one: streams and events are stand-ins."""

from __future__ import annotations

import threading

import pytest
import torch

from regraft.adapters.extract import streams

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Stream:
    def __init__(self, *_):
        self.calls = []

    def wait_event(self, event):
        self.calls.append(event)

    def synchronize(self):
        self.calls.append("synchronize")


class Event:
    def record(self, stream):
        self.stream = stream


@pytest.fixture
def current(monkeypatch):
    """The current stream of every thread; that of this one is made already."""
    own = threading.local()
    own.stream = Stream()

    def current_stream(*_):
        return own.stream

    def set_stream(stream):
        own.stream = stream

    def set_device(device):
        assert device.index == 3

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch.cuda, "set_stream", set_stream)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return current_stream


def test_results_come_in_order_and_each_is_computed_on_a_stream_of_its_thread(current):
    main, met, used = current(), threading.Barrier(3, timeout=20), []

    def work(item):
        stream = current()
        assert stream is not main
        (made,) = [call for call in stream.calls if call != "synchronize"][-1:]
        assert made.stream is main  # waits for what this thread queued before the item
        if item < 3:
            met.wait()  # the first three are worked on at the same time
        used.append(stream)
        return 10 * item

    threads = torch.get_num_threads()
    results = streams.in_order(iter(range(7)), work, lambda _: 1, CUDA, 3)
    assert list(results) == [0, 10, 20, 30, 40, 50, 60]
    assert len(set(map(id, used))) == 3
    assert all(stream.calls[-1] == "synchronize" for stream in used)
    assert torch.get_num_threads() == threads


def test_large_items_wait_until_there_is_room(current, monkeypatch):
    monkeypatch.setattr(streams, "_ELEMENTS", 10)
    lock, busy, most = threading.Lock(), [], []

    def work(size):
        with lock:
            busy.append(size)
            most.append(sum(busy))
        threading.Event().wait(0.005)
        with lock:
            busy.remove(size)
        return size

    sizes = [4, 4, 4, 12, 3, 3, 3, 3]
    assert list(streams.in_order(sizes, work, lambda size: size, CUDA, 4)) == sizes
    assert max(most) == 12  # alone, although it is more than the limit


def test_an_error_is_raised_in_its_turn_and_nothing_is_begun_after_it(current):
    begun, results = [], []

    def work(item):
        begun.append(item)
        if item == 2:
            raise ValueError("no")
        return item

    with pytest.raises(ValueError, match="no"):
        results.extend(streams.in_order(range(100), work, lambda _: 1, CUDA, 2))
    assert results == [0, 1]
    assert begun[:3] == [0, 1, 2]
    assert len(begun) <= 5
    assert current().calls == []  # this thread's stream was never used to compute


def test_one_at_a_time_is_this_thread(current):
    made = []

    def items():
        for number in range(3):
            made.append(number)
            yield number

    seen = []
    for result in streams.in_order(items(), lambda item: item + 1, lambda _: 1, CPU, 1):
        seen.append((result, len(made)))
    assert seen == [(1, 1), (2, 2), (3, 3)]  # an item is made when the one before is done


def test_a_gpu_gets_one_matrix_less_than_torch_has_threads(monkeypatch):
    for threads, expected in ((1, 1), (2, 1), (4, 3), (16, 4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert streams.matrices_at_once(torch.device("cuda:0")) == expected
        assert streams.matrices_at_once(CPU) == 1
