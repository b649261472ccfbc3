"""Values that are slow to make, such as models, made once in a process and kept for all its work.

A process does many pieces of a build, each with steps of its own, and each piece would load the
models of its steps again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

Value = TypeVar("Value")
_values: dict[tuple[Hashable, ...], Any] = {}


def kept(make: Callable[..., Value], *arguments: Hashable) -> Value:
    """`make(*arguments)`, called once in a process."""
    key = (make, *arguments)
    if key not in _values:
        _values[key] = make(*arguments)
    return cast(Value, _values[key])


@contextmanager
def keeping() -> Iterator[None]:
    """Keep values to the end of the block: files may change before the next build."""
    try:
        yield
    finally:
        _values.clear()
