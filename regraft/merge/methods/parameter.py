"""Parameters of a merge method: declared by its signature, parsed from a recipe.

`weight: PerInput[float]` is one number per input, `density: PerInput[Fraction] = (1.0,)` the same
with bounds and a default, `lambda_: float = 1.0` one number for all inputs (named `lambda` in a
recipe). A parameter without a default is required.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

from regraft.errors import InputError

T = TypeVar("T")

ParameterValues = dict[str, Any]
"""Values of a method's parameters by their names in a recipe; the method's signature has types."""


class _Marker:
    """A sentinel that prints as its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


REQUIRED = _Marker("REQUIRED")
_PER_INPUT = _Marker("per input")
PerInput: TypeAlias = Annotated[Sequence[T], _PER_INPUT]


@dataclass(frozen=True)
class Bounds:
    """The closed interval that a number must lie in."""

    low: float
    high: float


Fraction: TypeAlias = Annotated[float, Bounds(0.0, 1.0)]
Count: TypeAlias = Annotated[int, Bounds(1, math.inf)]
Positive: TypeAlias = Annotated[float, Bounds(0.0, math.inf)]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method. name: in a recipe; bounds: a closed interval; choices: the allowed
    strings; optional: whether None (not given) is a value."""

    name: str
    default: Any
    per_input: bool
    kind: type
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] | None = None
    optional: bool = False

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    def parse(self, value: Any) -> Any:
        """A value from YAML, converted and checked: YAML reads '1e-4' as a string, and 1, 0 and
        true are both numbers and booleans. Raises InputError."""
        if self.kind in (int, float) and isinstance(value, bool):
            value = int(value)
        elif self.kind in (int, float) and isinstance(value, str):
            with suppress(ValueError):
                value = float(value)
        elif self.kind is bool and value in (0, 1):
            value = bool(value)
        return self.check(value)

    def check(self, value: Any) -> Any:
        """`value` (of one input if `per_input`) as the parameter's type. Raises InputError."""
        if value is None and self.optional:
            return None
        kinds = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
        number = isinstance(value, int | float) and not isinstance(value, bool)
        good = {
            float: number and _finite(value),
            int: number and float(value).is_integer(),
            bool: isinstance(value, bool),
            str: isinstance(value, str),
        }[self.kind]
        if not good:
            raise InputError(f"{self.name} must be {kinds[self.kind]}, not {value!r}")
        if self.bounds and not self.bounds[0] <= value <= self.bounds[1]:
            low, high = self.bounds
            span = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise InputError(f"{self.name} must be {span}, not {value!r}")
        if self.choices and value not in self.choices:
            raise InputError(f"{self.name} must be one of {', '.join(self.choices)}, not {value!r}")
        return self.kind(value)


def parameter_of(name: str, hint: Any, default: Any) -> Parameter:
    """The parameter that an argument of a method declares, from its type hint and default.

    Raises TypeError for a type that YAML does not have.
    """
    per_input = False
    if get_origin(hint) is Annotated and _PER_INPUT in get_args(hint):
        per_input, hint = True, get_args(get_args(hint)[0])[0]
        default = default[0] if isinstance(default, tuple) else default
    bounds: tuple[float, float] | None = None
    if get_origin(hint) is Annotated:
        hint, limits = get_args(hint)
        bounds = (limits.low, limits.high)
    choices: tuple[str, ...] | None = None
    if get_origin(hint) is Literal:
        choices, hint = get_args(hint), str
    optional = get_origin(hint) in (Union, UnionType)
    if optional:
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    if hint not in (float, int, bool, str):
        raise TypeError(f"parameter {name} has no type that a recipe can give: {hint}")
    return Parameter(
        name=name.rstrip("_"),
        default=REQUIRED if default is inspect.Parameter.empty else default,
        per_input=per_input,
        kind=hint,
        bounds=bounds,
        choices=choices,
        optional=optional,
    )


def _finite(value: float) -> bool:
    """Whether the number is finite as a float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
