"""The value of a parameter in a recipe: one value, a gradient over the layers, or values by filter.

weight: 0.5
weight: [0.2, 0.8]                                      # from the first layer to the last
weight: [{filter: mlp, value: 0.5}, {value: [0.2, 0.8]}]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from regraft.errors import short_repr
from regraft.input_files import JsonObject

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Condition:
    """One setting of a parameter: `value`, a scalar or a gradient, where `filter` matches."""

    filter: str | None
    value: Scalar | tuple[Scalar, ...]

    @property
    def values(self) -> tuple[Scalar, ...]:
        """The scalar alone, or the points of the gradient."""
        return self.value if isinstance(self.value, tuple) else (self.value,)

    def matches(self, tensor: str) -> bool:
        """Whether the filter is part of this name of a tensor."""
        return self.filter is None or self.filter == "*" or self.filter in tensor


Setting = tuple[Condition, ...]
"""The first condition that matches a tensor gives the value."""


def parse_setting(value: Any) -> Setting:
    """Parse the value of a parameter in a recipe. Raises ValueError."""
    if _is_scalar(value):
        return (Condition(None, value),)
    conditions = [value] if isinstance(value, dict) else value
    if isinstance(value, list) and value and all(_is_scalar(item) for item in value):
        return (Condition(None, tuple(value)),)
    if not isinstance(conditions, list) or not conditions:
        raise ValueError("a parameter is a value, a list of values, or a list of {filter, value}")
    result = []
    for item in conditions:
        if not isinstance(item, dict) or "value" not in item or set(item) - {"filter", "value"}:
            raise ValueError(
                f"{short_repr(item)} is not {{filter: part of a tensor's name, value: ...}}"
            )
        chosen, inner = item.get("filter"), item["value"]
        if chosen is not None and not isinstance(chosen, str):
            raise ValueError(f"the filter {short_repr(chosen)} is not a part of a tensor's name")
        if isinstance(inner, list) and inner and all(_is_scalar(part) for part in inner):
            inner = tuple(inner)
        elif not _is_scalar(inner):
            raise ValueError(f"the value {short_repr(inner)} is not a number, word or list of them")
        result.append(Condition(chosen, inner))
    return tuple(result)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


_SCALAR_SCHEMA: JsonObject = {"type": ["number", "boolean", "string"]}
_GRADIENT_SCHEMA = {
    "anyOf": [_SCALAR_SCHEMA, {"type": "array", "items": _SCALAR_SCHEMA, "minItems": 1}]
}
_CONDITION_SCHEMA = {
    "type": "object",
    "properties": {"filter": {"type": ["string", "null"]}, "value": _GRADIENT_SCHEMA},
    "required": ["value"],
    "additionalProperties": False,
}
SETTING_SCHEMA = {
    "anyOf": [
        *_GRADIENT_SCHEMA["anyOf"],
        _CONDITION_SCHEMA,
        {"type": "array", "items": _CONDITION_SCHEMA, "minItems": 1},
    ]
}
Settings = dict[str, Annotated[Any, BeforeValidator(parse_setting), WithJsonSchema(SETTING_SCHEMA)]]
