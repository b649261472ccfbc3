"""The merge methods by name, and what the executor may know of each.

A method is a plain function `(tensors, base, *, parameters..., state, offset, seed) -> tensor`
under the `method` decorator. Its parameters are its signature: `weight: PerInput[float]` is one
number per input, `density: PerInput[float] = (1.0,)` the same with a default, `lambda_: float =
1.0` one number for all (a trailing underscore is dropped in recipes, so `lambda`); without a
default a recipe must give it. `state`, `offset` and `seed` go to those functions that name them.

The stream. A tensor is seen as rows: its first axis, everything behind it belongs to the row; a
tensor with fewer than two axes is one row. A block is a run of whole rows of every input and of
the base, float32 (or float64). `prepare` may walk over the blocks as often as it likes and returns
what the method must know of the whole tensor (a threshold, a Gram matrix, coefficients); `combine`
turns one block into one block of the result, in any order and in any block size: the bits of the
result do not depend on either. A method that needs the whole tensor at once has `blockwise` False
and gets it as a single block.

No function here changes its inputs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import torch
from torch import Tensor

from regraft.errors import InputError, did_you_mean

FAMILIES = (
    "linear",
    "nearswap",
    "passthrough",
    "sce",
    "spherical",
    "model_stock",
    "subspace",
    "task",
)
BLOCK = 2**18  # elements of a block: 1 MiB in float32, so that a few of them stay in cache

Block: TypeAlias = tuple[list[Tensor], Tensor | None]
T = TypeVar("T")


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


class Blocks(Protocol):
    """The inputs as blocks: `blocks()` yields ([input blocks], base block) in the rows' order.
    `blocks(step)` yields rows 0, step, 2 step, ... only, as cheaply as that allows: a sample."""

    def __call__(self, step: int = 1) -> Iterator[Block]: ...


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method, as a recipe names it. `bounds` are closed, `choices` the allowed
    strings, `optional` tells whether None (not given) is a value."""

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
        """A value from YAML, where '1e-4' is a word, 1 and 0 may be switches and true a number,
        checked. Raises InputError."""
        if self.kind in (int, float) and isinstance(value, bool):
            value = int(value)
        elif self.kind in (int, float) and isinstance(value, str):
            with suppress(ValueError):
                value = float(value)
        elif self.kind is bool and value in (0, 1):
            value = bool(value)
        return self.check(value)

    def check(self, value: Any) -> Any:
        """`value`, one input's if `per_input`, as the right type. Raises InputError."""
        if value is None and self.optional:
            return None
        wanted = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
        number = isinstance(value, int | float) and not isinstance(value, bool)
        good = {
            float: number and _finite(value),
            int: number and float(value).is_integer(),
            bool: isinstance(value, bool),
            str: isinstance(value, str),
        }[self.kind]
        if not good:
            raise InputError(f"{self.name} must be {wanted[self.kind]}, not {value!r}")
        if self.bounds and not self.bounds[0] <= value <= self.bounds[1]:
            low, high = self.bounds
            span = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise InputError(f"{self.name} must be {span}, not {value!r}")
        if self.choices and value not in self.choices:
            raise InputError(f"{self.name} must be one of {', '.join(self.choices)}, not {value!r}")
        return self.kind(value)


@dataclass(frozen=True)
class Method:
    """A merge method.

    base          'required'; 'optional'; 'ignored': the base is an input like the others or none
    inputs        least and greatest number (None: any) of inputs besides the base
    parameters    by the name a recipe uses
    symmetric     the order of the inputs (with their parameters) does not matter, but for rounding
    stochastic    uses the seed
    blockwise     False: `combine` needs the whole tensor as one block
    experimental  not shown to help on language models
    """

    name: str
    paper: str
    base: Literal["required", "optional", "ignored"]
    inputs: tuple[int, int | None]
    parameters: dict[str, Parameter]
    symmetric: bool
    stochastic: bool
    blockwise: bool
    experimental: bool
    doc: str
    _combine: Callable[..., Tensor] = field(repr=False)
    _prepare: Callable[..., Any] | None = field(repr=False)
    _check: Callable[..., None] | None = field(repr=False)

    @property
    def elementwise(self) -> bool:
        """Whether an element of the result depends on that element of the inputs only."""
        return self._prepare is None and self.blockwise

    def bind(self, given: Mapping[str, Any], inputs: int) -> dict[str, Any]:
        """Every parameter of the method, checked: `given` by recipe names, defaults for the rest,
        one value for all inputs spread over them. Raises InputError in one sentence."""
        for name in given:
            if name not in self.parameters:
                hint = did_you_mean(name, self.parameters)
                raise InputError(f"{self.name} has no parameter {name!r}{hint}")
        bound: dict[str, Any] = {}
        for parameter in self.parameters.values():
            value = given.get(parameter.name, parameter.default)
            if value is REQUIRED:
                if parameter.per_input and not inputs:
                    value = []
                else:
                    raise InputError(f"{self.name} needs the parameter {parameter.name}")
            if not parameter.per_input:
                bound[parameter.name] = parameter.check(value)
                continue
            values = list(value) if isinstance(value, list | tuple) else [value] * inputs
            if len(values) != inputs:
                raise InputError(
                    f"{parameter.name} has {len(values)} values for {inputs} inputs: give one each"
                )
            bound[parameter.name] = [parameter.check(each) for each in values]
        if self._check:
            self._check(**_named(self._check, bound))
        return bound

    def check_inputs(self, inputs: int, *, base: bool) -> None:
        """Whether this many inputs besides the base suit the method. Raises InputError."""
        low, high = self.inputs
        if self.base == "required" and not base:
            raise InputError(f"{self.name} needs a base model: set base_model")
        if inputs < low or (high is not None and inputs > high):
            count = f"{low}" if low == high else f"at least {low}" if inputs < low else f"{high}"
            besides = " besides the base" if self.base == "required" else ""
            raise InputError(f"{self.name} merges {count} model(s){besides}, not {inputs}")

    def prepare(
        self, blocks: Blocks, shape: Sequence[int], params: Mapping[str, Any], seed: int
    ) -> Any:
        """What `combine` must know of the whole tensor of this shape, None if nothing (then no
        block was read). `params` as bound, `seed` the tensor's own."""
        if self._prepare is None:
            return None
        extra = {"blocks": blocks, "shape": tuple(shape), "seed": seed}
        return self._prepare(**_named(self._prepare, params, extra))

    def combine(
        self,
        tensors: list[Tensor],
        base: Tensor | None,
        params: Mapping[str, Any],
        state: Any,
        *,
        offset: int = 0,
        generator_seed: int = 0,
    ) -> Tensor:
        """One block of the result, in the inputs' dtype. `offset` is the index of the block's first
        element in the flat tensor, `generator_seed` the seed that `prepare` got."""
        extra = {"state": state, "offset": offset, "seed": generator_seed}
        return self._combine(tensors, base, **_named(self._combine, params, extra))


def _finite(value: float) -> bool:
    """Whether the number is finite as a float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


_METHODS: dict[str, Method] = {}


def get(name: str) -> Method:
    """The method of that name. Raises InputError with the nearest name."""
    names()
    if name not in _METHODS:
        hint = did_you_mean(name, _METHODS)
        raise InputError(f"there is no native merge method {name!r}{hint}")
    return _METHODS[name]


def names() -> list[str]:
    """The names of all native methods, sorted."""
    for family in FAMILIES:
        import_module(f"regraft.merge.methods.{family}")
    return sorted(_METHODS)


def method(
    name: str,
    *,
    paper: str,
    base: Literal["required", "optional", "ignored"] = "required",
    inputs: tuple[int, int | None] = (1, None),
    prepare: Callable[..., Any] | None = None,
    check: Callable[..., None] | None = None,
    symmetric: bool = False,
    blockwise: bool = True,
    experimental: bool = False,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register the function below as the `combine` of a method. `prepare` and `check` are plain
    functions too and get what they name: parameters; `prepare` also blocks, shape and seed."""

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        hints = get_type_hints(function, include_extras=True)
        parameters = [
            _parameter(argument.name, hints[argument.name], argument.default)
            for argument in _arguments(function).values()
            if argument.name not in ("tensors", "base", "state", "offset", "seed")
        ]
        if name in _METHODS:
            raise ValueError(f"merge method {name!r} is registered twice")
        _METHODS[name] = Method(
            name=name,
            paper=paper,
            base=base,
            inputs=inputs,
            parameters={parameter.name: parameter for parameter in parameters},
            symmetric=symmetric,
            stochastic=any("seed" in _arguments(f) for f in (function, prepare) if f),
            blockwise=blockwise,
            experimental=experimental,
            doc=inspect.getdoc(function) or "",
            _combine=function,
            _prepare=prepare,
            _check=check,
        )
        return function

    return register


@dataclass(frozen=True)
class StoredBlocks:
    """`Blocks` of tensors in any dtype (memory-mapped, for example), converted block by block."""

    tensors: Sequence[Tensor]
    base: Tensor | None = None
    elements: int | None = BLOCK  # of a block, at least one row; None: the whole tensor
    dtype: torch.dtype = torch.float32

    def __call__(self, step: int = 1) -> Iterator[Block]:
        first = self.tensors[0] if self.tensors else self.base
        assert first is not None
        if first.ndim < 2:
            yield self._convert(slice(None))
            return
        rows = first.shape[0]
        height = max(1, rows)
        if self.elements is not None:
            height = max(1, self.elements // max(1, first[:1].numel()))
        for start in range(0, rows, height * step):
            yield self._convert(slice(start, min(rows, start + height * step), step))

    def _convert(self, rows: slice) -> Block:
        def part(tensor: Tensor) -> Tensor:
            return (tensor[rows] if tensor.ndim > 1 else tensor).to(self.dtype)

        return [part(t) for t in self.tensors], None if self.base is None else part(self.base)


def merge_tensors(
    name: str,
    tensors: Sequence[Tensor],
    base: Tensor | None = None,
    params: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    elements: int | None = BLOCK,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Merge tensors in memory: bind, prepare, combine. `tensors` without the base; the result has
    `dtype`. Raises InputError for parameters or counts that the method does not take."""
    chosen = get(name)
    chosen.check_inputs(len(tensors), base=base is not None)
    bound = chosen.bind(params or {}, len(tensors))
    base = None if chosen.base == "ignored" else base
    first = tensors[0] if tensors else base
    assert first is not None
    if not first.numel():
        return first.to(dtype)
    blocks = StoredBlocks(tensors, base, elements if chosen.blockwise else None, dtype)
    state = chosen.prepare(blocks, first.shape, bound, seed)
    parts, offset = [], 0
    for inputs, block in blocks():
        part = chosen.combine(inputs, block, bound, state, offset=offset, generator_seed=seed)
        parts.append(part)
        offset += part.numel()
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _named(
    function: Callable[..., Any], params: Mapping[str, Any], extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Those of `params` and `extra` that the function names."""
    chosen = {_argument(name): value for name, value in params.items()}
    chosen.update(extra or {})
    return {name: value for name, value in chosen.items() if name in _arguments(function)}


@cache
def _arguments(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _argument(name: str) -> str:
    return "lambda_" if name == "lambda" else name


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
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
