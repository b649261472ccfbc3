"""Types of values in a recipe: lengths such as 64k, numbers with limits; blocks."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from regraft.errors import InputError
from regraft.units import parse_bytes, parse_tokens

Kind = TypeVar("Kind", bound=str)


def _tokens(value: Any) -> int:
    try:
        return parse_tokens(value)
    except InputError as error:
        raise ValueError(str(error).rstrip(".")) from None


def _bytes(value: Any) -> int:
    try:
        return parse_bytes(value)
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
Bytes = Annotated[
    int, BeforeValidator(_bytes), WithJsonSchema({"type": ["integer", "string"]})
]  # 256000000, 256MB
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


class Located(Block, Generic[Kind]):
    """A block that says where something is by exactly one of several keys.

    kinds: these keys.
    """

    kinds: ClassVar[tuple[str, ...]]

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(getattr(self, key) is not None for key in self.kinds) != 1:
            raise ValueError(f"give one of {', '.join(self.kinds)}")
        return self

    @property
    def kind(self) -> Kind:
        """The key that is given."""
        return cast(Kind, next(key for key in self.kinds if getattr(self, key) is not None))

    @property
    def location(self) -> str:
        """The value of that key, such as a path, a pattern or a dataset."""
        return str(getattr(self, self.kind))
