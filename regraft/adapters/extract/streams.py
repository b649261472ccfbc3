"""Decompose several matrices at once on a GPU, each on a stream of its own.

A decomposition alternates between products on the GPU and eigenproblems of a few hundred columns on
the host (`lowrank.blocks`), so that one matrix at a time leaves both idle for half of the time:
Llama-3-8B's seven matrices of a layer took longer than reading them at 5 GB/s. The arithmetic of a
matrix does not depend on the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 4
_ELEMENTS = 1 << 28  # of all matrices at once: 1 GiB in float32


def matrices_at_once(device: torch.device) -> int:
    """Number of matrices to decompose at once: on a GPU one less than torch has threads, four at
    most; on a CPU one, which takes all threads."""
    if device.type != "cuda":
        return 1
    return max(1, min(AT_ONCE, torch.get_num_threads() - 1))


def in_order(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    size: Callable[[Item], int],
    device: torch.device,
    at_once: int,
) -> Generator[Result]:
    """work(item) of every item, in the order of the items.

    items: made by this thread on its current stream of `device`, and dropped when worked on. size:
    elements of an item; items of more than `_ELEMENTS` in all wait. at_once: threads, each with a
    stream of its own; 1: this thread. The first error of `work` is raised in its turn, one of
    `items` at once; no item is begun after it. Close the iterator where it is left before its end,
    or threads go on working.
    """
    if at_once == 1:
        for item in items:
            result = work(item)
            del item
            yield result
        return
    threads = torch.get_num_threads()
    if device.index is None:  # a new thread's default is the first GPU, not this thread's
        device = torch.device(device.type, torch.cuda.current_device())
    running: deque[tuple[int, Future[Result]]] = deque()
    try:
        with ThreadPoolExecutor(at_once, "regraft", _own_stream, (device,)) as pool:
            try:
                for item in items:
                    elements = size(item)
                    while running and (
                        len(running) >= at_once
                        or sum(other for other, _ in running) + elements > _ELEMENTS
                    ):
                        yield running.popleft()[1].result()
                    made = torch.cuda.Event()
                    made.record(torch.cuda.current_stream(device))
                    running.append((elements, pool.submit(_run, work, item, made, device)))
                    del item
                while running:
                    yield running.popleft()[1].result()
            finally:
                for _, future in running:
                    future.cancel()
    finally:
        torch.set_num_threads(threads)  # some libraries take a worker's setting for the process


def _own_stream(device: torch.device) -> None:
    """Prepare a worker: a torch thread and a stream of its own."""
    torch.set_num_threads(1)
    torch.cuda.set_device(device)
    torch.cuda.set_stream(torch.cuda.Stream(device))


def _run(
    work: Callable[[Item], Result], item: Item, made: torch.cuda.Event, device: torch.device
) -> Result:
    """work(item) on this thread's stream, after `made`; the item's memory is free on return."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(made)
    try:
        return work(item)
    finally:
        stream.synchronize()
