"""Types of values in a recipe: lengths such as 64k, numbers with limits; blocks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from regraft.errors import InputError
from regraft.units import parse_tokens


def _tokens(value: Any) -> int:
    try:
        return parse_tokens(value)
    except InputError as error:
        raise ValueError(str(error).rstrip(".")) from None


def _number(value: Any) -> Any:
    """A string as a number: YAML 1.1 reads 2e-5 as a string."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Tokens = Annotated[
    int, BeforeValidator(_tokens), WithJsonSchema({"type": ["integer", "string"]})
]  # 65536, 64k, 1M
_SCHEMA = WithJsonSchema({"type": ["number", "string"]})
Number = Annotated[float, BeforeValidator(_number), _SCHEMA]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False), _SCHEMA]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1), _SCHEMA]
Theta = Annotated[float, BeforeValidator(_number), Field(gt=1, allow_inf_nan=False), _SCHEMA]
Count = Annotated[int, Field(ge=1)]
Degree = Count | Literal["auto"]


class Block(BaseModel):
    """A mapping of a recipe; unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
