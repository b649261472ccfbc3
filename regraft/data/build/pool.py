"""Pieces of work on one process or several, as they finish."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from regraft.data.build import work
from regraft.errors import RegraftError

Result = TypeVar("Result")
_CONTEXT = "forkserver"  # a fork of this process would have copies of locks that threads hold


class Pool:
    """Calls functions in `workers` processes; with one, in this process.

    As a context manager it ends the processes, at once where the block fails.
    """

    def __init__(self, workers: int) -> None:
        self._before = set(multiprocessing.active_children())
        self._executor: ProcessPoolExecutor | None = None
        if workers > 1:
            context = multiprocessing.get_context(_CONTEXT)
            if _CONTEXT == "forkserver":
                context.set_forkserver_preload([work.__name__])
            self._executor = ProcessPoolExecutor(
                workers, mp_context=context, initializer=work.start_worker
            )

    def run(
        self, calls: dict[str, tuple[Callable[..., Result], tuple[Any, ...]]]
    ) -> Iterator[tuple[str, Result]]:
        """(name, result) of each call, in the order in which they finish.

        Raises what a call raises, and RegraftError where a process was killed.
        """
        if self._executor is None:
            for name, (function, arguments) in calls.items():
                yield name, function(*arguments)
            return
        futures = {
            self._executor.submit(function, *arguments): name
            for name, (function, arguments) in calls.items()
        }
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                raise RegraftError(
                    "A process of the build was killed, probably for want of memory; continue "
                    "with --resume and fewer --workers."
                ) from None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._executor is None:
            return
        self._executor.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:
            for process in set(multiprocessing.active_children()) - self._before:
                process.terminate()
