"""Resolve scopes, filters and gradients to the value of each parameter for one output tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from regraft import progress
from regraft.errors import InputError
from regraft.merge.methods.parameter import Parameter, ParameterValues
from regraft.merge.methods.registry import Method
from regraft.merge.recipe.recipe import Recipe, Scope, Slice, Source
from regraft.merge.recipe.settings import Condition


def warn_unused(recipe: Recipe, method: Method) -> None:
    """Warn of parameters in the recipe that this method does not have."""
    unused = {name for settings, _ in recipe.scopes() for name in settings}
    for name in sorted(unused - set(method.parameters) - {"int8_mask"}):
        progress.warn(f"{method.name} has no parameter '{name}'; the recipe's is not used.")


def bind(
    recipe: Recipe,
    part: Slice,
    method: Method,
    inputs: list[tuple[Source, str]],
    tensor: str,
    t: float,
) -> ParameterValues:
    """The method's parameters for one output tensor, checked.

    inputs: the sources besides the base, each with the name of its tensor, against which filters
    are matched; tensor: the output's name, for parameters that all inputs share. t: position of the
    layer in its slice from 0 to 1, for gradients. Raises InputError with the recipe's line.
    """
    values: ParameterValues = {}
    for parameter in method.parameters.values():
        if parameter.name == "variant" and recipe.body.ties is not None:
            values["variant"] = recipe.body.ties.variant
        elif parameter.per_input:
            values[parameter.name] = [
                _value(recipe, method, parameter, _of_source(source, part), name, t, source)
                for source, name in inputs
            ]
        else:
            values[parameter.name] = _value(recipe, method, parameter, part.scopes, tensor, t, None)
    try:
        return method.bind(values, len(inputs))
    except InputError as error:
        raise recipe.error(("parameters",), f"{str(error).rstrip('.')}.") from None


def _value(
    recipe: Recipe,
    method: Method,
    parameter: Parameter,
    scopes: Iterable[Scope],
    tensor: str,
    t: float,
    source: Source | None,
) -> Any:
    for settings, where in scopes:
        conditions = settings.get(parameter.name, ())
        condition = next((c for c in conditions if c.matches(tensor)), None)
        if condition is not None:
            try:
                return _at(parameter, condition, t)
            except InputError as error:
                raise recipe.error((*where, parameter.name), f"{error} (for '{tensor}').") from None
    if parameter.required:
        whose = f" of {source.ref}" if source else ""
        raise recipe.error(
            source.where if source else ("merge_method",),
            f"{method.name} needs the parameter {parameter.name}{whose}, and nothing sets it for "
            f"'{tensor}'.",
        )
    return parameter.default


def _at(parameter: Parameter, condition: Condition, t: float) -> Any:
    """The condition's value at `t`. Numbers of a gradient are interpolated; of strings and booleans
    the one below `t` is taken."""
    if not isinstance(condition.value, tuple):
        return parameter.parse(condition.value)
    values = [parameter.parse(value) for value in condition.value]
    scaled = t * (len(values) - 1)
    low = int(scaled)
    if parameter.kind not in (int, float):
        return values[low]
    high = min(low + 1, len(values) - 1)
    share = scaled - low
    return parameter.check((1 - share) * values[low] + share * values[high])


def _of_source(source: Source, part: Slice) -> tuple[Scope, ...]:
    return ((source.parameters, (*source.where, "parameters")), *part.scopes)
