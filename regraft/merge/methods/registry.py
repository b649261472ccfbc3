"""The registry of merge methods: the `method` decorator, lookup by name, and the calls.

A method is a plain function `(tensors, base, *, parameters..., state, offset, seed) -> tensor`
under the `method` decorator. The parameters of a recipe come from its signature (see `parameter`);
`state`, `offset` and `seed` are passed to functions that have such an argument.

`prepare` may read the blocks (see `blocks`) any number of times and returns what depends on the
whole tensor: a threshold, a Gram matrix, coefficients. `combine` makes one block of the result from
one block of the inputs, in any order and block size, neither of which changes a bit of the result.
A method that needs the whole tensor at once has `blockwise` False and gets it as a single block. No
function here changes its inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor

from regraft.errors import InputError, did_you_mean
from regraft.merge.methods.blockwise.blocks import BLOCK, Blocks, StoredBlocks
from regraft.merge.methods.parameter import REQUIRED, Parameter, ParameterValues, parameter_of
from regraft.plugins import MERGE_METHODS, load_plugins

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


@dataclass(frozen=True)
class Method:
    """A merge method.

    base          'required'; 'optional'; 'ignored': merged as one more input where a recipe has one
    inputs        least and greatest number (None: any) of inputs besides the base
    parameters    by their names in a recipe
    symmetric     the order of the inputs (with their parameters) matters for rounding only
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
    _constants: Mapping[str, Any] = field(repr=False)
    _combine: Callable[..., Tensor] = field(repr=False)
    _prepare: Callable[..., Any] | None = field(repr=False)
    _check: Callable[..., None] | None = field(repr=False)

    @property
    def elementwise(self) -> bool:
        """Whether each element of the result depends only on the same element of the inputs."""
        return self._prepare is None and self.blockwise

    def bind(self, stated: Mapping[str, Any], inputs: int) -> ParameterValues:
        """Every parameter of the method, checked: `stated` by recipe names, else the default. A
        single value of a per-input parameter is repeated for all inputs. Raises InputError."""
        for name in stated:
            if name not in self.parameters:
                hint = did_you_mean(name, self.parameters)
                raise InputError(f"{self.name} has no parameter {name!r}{hint}")
        bound: ParameterValues = {}
        for parameter in self.parameters.values():
            value = stated.get(parameter.name, parameter.default)
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
        """Raise InputError where the method cannot merge this many inputs besides the base."""
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
        """What `combine` needs to know of the whole tensor of this shape; None, without reading a
        block, if nothing. params: as `bind` returns them; seed: the tensor's own."""
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
        """One block of the result, in the inputs' dtype. offset: index of the block's first element
        in the flat tensor; generator_seed: the seed that `prepare` got."""
        extra = {"state": state, "offset": offset, "seed": generator_seed, **self._constants}
        return self._combine(tensors, base, **_named(self._combine, params, extra))


_METHODS: dict[str, Method] = {}


def get(name: str) -> Method:
    """The method of that name. Raises InputError with the closest name."""
    names()
    if name not in _METHODS:
        hint = did_you_mean(name, _METHODS)
        raise InputError(f"there is no native merge method {name!r}{hint}")
    return _METHODS[name]


def names() -> list[str]:
    """The names of all native methods and of those that plug-ins register, sorted."""
    for family in FAMILIES:
        import_module(f"regraft.merge.methods.{family}")
    load_plugins(MERGE_METHODS)
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
    parameters: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    constants: Mapping[str, Any] | None = None,
    doc: str | None = None,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register the decorated function as the `combine` of a method. `prepare` and `check` are plain
    functions that get the parameters they have as arguments; `prepare` also blocks, shape and seed.

    One function may be registered for several methods: `parameters` names the arguments that a
    recipe may set (by default all), `defaults` replaces their defaults, `constants` are arguments
    that no recipe sets, and `doc` replaces the docstring.
    """
    fixed = dict(constants or {})

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        hints = get_type_hints(function, include_extras=True)
        described = [
            parameter_of(argument.name, hints[argument.name], argument.default)
            for argument in _arguments(function).values()
            if argument.name not in ("tensors", "base", "state", "offset", "seed", *fixed)
        ]
        chosen = {
            one.name: replace(one, default=(defaults or {}).get(one.name, one.default))
            for one in described
            if parameters is None or one.name in parameters
        }
        if name in _METHODS:
            raise ValueError(f"merge method {name!r} is registered twice")
        _METHODS[name] = Method(
            name=name,
            paper=paper,
            base=base,
            inputs=inputs,
            parameters=chosen,
            symmetric=symmetric,
            stochastic=any("seed" in _arguments(f) for f in (function, prepare) if f),
            blockwise=blockwise,
            experimental=experimental,
            doc=doc or inspect.getdoc(function) or "",
            _constants=fixed,
            _combine=function,
            _prepare=prepare,
            _check=check,
        )
        return function

    return register


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
    """Merge tensors in memory: bind, prepare, combine. tensors: without the base; dtype: of the
    arithmetic and the result. Raises InputError for parameters or numbers of inputs that the method
    does not accept."""
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
) -> ParameterValues:
    """Those of `params` and `extra` that are arguments of the function."""
    chosen = {_argument(name): value for name, value in params.items()}
    chosen.update(extra or {})
    return {name: value for name, value in chosen.items() if name in _arguments(function)}


@cache
def _arguments(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _argument(name: str) -> str:
    return "lambda_" if name == "lambda" else name
