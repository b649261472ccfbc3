"""A cache of values that are slow to make, such as models, for all work of a process.

A process does many pieces of a build, each with steps of its own, and each piece would load the
models of its steps again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, TypeVarTuple, cast

Value = TypeVar("Value")
Arguments = TypeVarTuple("Arguments")
_values: dict[tuple[Any, ...], Any] = {}


def cached(make: Callable[[*Arguments], Value], *arguments: *Arguments) -> Value:
    """`make(*arguments)`, called once in a process; the arguments are hashable."""
    key = (make, *arguments)
    if key not in _values:
        _values[key] = make(*arguments)
    return cast(Value, _values[key])


@contextmanager
def clearing_cache() -> Iterator[None]:
    """Clear the cache after the block: files may change before the next build."""
    try:
        yield
    finally:
        _values.clear()
