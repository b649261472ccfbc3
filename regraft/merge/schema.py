"""The blocks of a merge recipe: every key, its type, its default and what it means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from regraft.errors import InputError, did_you_mean, short_repr
from regraft.units import parse_tokens

MAX_INPUTS = 256
# mergekit's methods that have no native form
BRIDGED = ("arcee_fusion", "ram", "ramplus_tl")
DTYPES = ("float32", "bfloat16", "float16", "float64")
Scalar = bool | int | float | str


@dataclass(frozen=True)
class ModelRef:
    """`path@revision+adapter@revision`; each a folder or a Hub id."""

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    def __str__(self) -> str:
        return self.model + (f"+{self.lora}" if self.adapter else "")

    @property
    def model(self) -> str:
        """The model's own name, as `Checkpoint.open` takes it."""
        return f"{self.path}@{self.revision}" if self.revision else self.path

    @property
    def lora(self) -> str | None:
        """The adapter's name, as `Adapter.open` takes it."""
        if self.adapter and self.adapter_revision:
            return f"{self.adapter}@{self.adapter_revision}"
        return self.adapter


@dataclass(frozen=True)
class Condition:
    """One setting of a parameter: `value`, a scalar or a gradient, where `filter` matches."""

    filter: str | None
    value: Scalar | tuple[Scalar, ...]

    @property
    def values(self) -> tuple[Scalar, ...]:
        """The scalar alone, or the points of the gradient."""
        return self.value if isinstance(self.value, tuple) else (self.value,)

    def holds(self, tensor: str) -> bool:
        return self.filter is None or self.filter == "*" or self.filter in tensor


Setting = tuple[Condition, ...]


def _reference(value: Any) -> ModelRef:
    if isinstance(value, ModelRef):
        return value
    if isinstance(value, str):
        if one := _path(value):
            return ModelRef(*one)
        name, _, added = value.partition("+")
        if (one := _path(name)) and (other := _path(added)):
            return ModelRef(*one, *other)
    if isinstance(value, dict) and set(value) <= {"model", "lora", "override_architecture"}:
        model, adapter = _from_mapping(value.get("model")), _from_mapping(value.get("lora"))
        if value.get("override_architecture") is not None:
            raise ValueError("override_architecture is not supported; correct the config instead")
        if model:
            return ModelRef(*model, *(adapter or (None, None)))
    raise ValueError(
        f"{short_repr(value)} is not a model such as org/name, path@rev or model+adapter"
    )


def _path(text: str) -> tuple[str, str | None] | None:
    """(path, revision) of one side of a '+'; None if it cannot be one."""
    if text and _exists(text):
        return text, None
    path, at, revision = text.partition("@")
    if not path.strip() or "+" in text or "@" in revision or bool(at) != bool(revision):
        return None
    return path, revision or None


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError):  # a name too long for a file; ~ of an unknown user
        return False


def _from_mapping(value: Any) -> tuple[str, str | None] | None:
    if isinstance(value, str):
        return _path(value)
    if isinstance(value, dict) and set(value) <= {"path", "revision"}:
        path, revision = value.get("path"), value.get("revision")
        if isinstance(path, str) and path and (revision is None or isinstance(revision, str)):
            return path, revision
    return None


def _setting(value: Any) -> Setting:
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


def _dtype(value: Any) -> str:
    name = str(value).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"'{value}' is not one of {', '.join(DTYPES)}{did_you_mean(name, DTYPES)}")
    return name


def _tokens(value: Any) -> int:
    try:
        return parse_tokens(value)
    except InputError as error:
        raise ValueError(str(error).rstrip(".")) from None


def _shorthand(value: Any) -> Any:
    """`context: NAME` and `context: theta=..,length=..` as the mapping they mean."""
    if not isinstance(value, str):
        return value
    if "=" not in value:
        return {"from": value}
    items = [item.partition("=") for item in value.split(",")]
    return {key.strip(): text.strip() for key, _, text in items}


_SCALAR_SCHEMA: dict[str, Any] = {"type": ["number", "boolean", "string"]}
_GRADIENT_SCHEMA = {
    "anyOf": [_SCALAR_SCHEMA, {"type": "array", "items": _SCALAR_SCHEMA, "minItems": 1}]
}
_CONDITION_SCHEMA = {
    "type": "object",
    "properties": {"filter": {"type": ["string", "null"]}, "value": _GRADIENT_SCHEMA},
    "required": ["value"],
    "additionalProperties": False,
}
_SETTING_SCHEMA = {
    "anyOf": [
        *_GRADIENT_SCHEMA["anyOf"],
        _CONDITION_SCHEMA,
        {"type": "array", "items": _CONDITION_SCHEMA, "minItems": 1},
    ]
}
_Ref = Annotated[
    ModelRef,
    BeforeValidator(_reference),
    PlainSerializer(str),
    WithJsonSchema({"type": ["string", "object"], "description": "path@revision+adapter@revision"}),
]
_Settings = dict[str, Annotated[Any, BeforeValidator(_setting), WithJsonSchema(_SETTING_SCHEMA)]]
_Dtype = Annotated[str, BeforeValidator(_dtype), WithJsonSchema({"enum": list(DTYPES)})]
_Tokens = Annotated[int, BeforeValidator(_tokens), WithJsonSchema({"type": ["integer", "string"]})]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class InputModel(_Block):
    model: _Ref
    parameters: _Settings | None = None


class InputSlice(_Block):
    model: _Ref
    layer_range: Annotated[list[int], Field(min_length=2, max_length=2)]
    parameters: _Settings | None = None


class OutputSlice(_Block):
    sources: Annotated[list[InputSlice], Field(min_length=1)]
    base_model: _Ref | None = None
    residual_weight: float | None = None  # mergekit reads it and does nothing with it
    parameters: _Settings | None = None


class Module(_Block):
    slices: list[OutputSlice] | None = None
    models: list[InputModel] | None = None
    parameters: _Settings | None = None


class Tokenizer(_Block):
    source: _Ref = Field(default=ModelRef("union"), description="'union', 'base' or a model")
    tokens: dict[str, Any] | None = None
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None


class Context(_Block):
    """The output's RoPE and length: an input's, changed by the values given."""

    source: str | None = Field(default=None, alias="from", description="an input, or 'base'")
    theta: Annotated[float, Field(gt=1)] | None = None
    length: _Tokens | None = None
    rope_type: str | None = None
    factor: Annotated[float, Field(ge=1)] | None = None
    original: _Tokens | None = None

    def changes(self) -> dict[str, Any]:
        """The values given, as `ContextSpec.extended` takes them."""
        return self.model_dump(exclude={"source"}, exclude_none=True)


class Ties(_Block):
    """Which of the three methods called TIES."""

    variant: Literal["mergekit", "paper", "peft"] = "mergekit"


class Evaluation(_Block):
    """What `regraft evaluate` is to ask of the result."""

    suite: str | list[str] | None = None
    lengths: _Tokens | list[_Tokens] | None = None
    items: Annotated[int, Field(ge=1)] | None = None


class Body(_Block):
    """The keys of a recipe."""

    merge_method: str
    base_model: _Ref | None = None
    models: list[InputModel] | None = None
    slices: list[OutputSlice] | None = None
    modules: dict[str, Module] | None = None
    parameters: _Settings | None = None
    dtype: _Dtype | None = Field(
        default=None, description="of the output; the arithmetic is float32 whatever it says"
    )
    out_dtype: _Dtype | None = Field(default=None, description="of the output, before dtype")
    tokenizer_source: _Ref | None = Field(default=None, description="'union', 'base' or a model")
    tokenizer: Tokenizer | None = None
    chat_template: str | None = Field(
        default=None, description="'auto', a template's name in mergekit, or Jinja text"
    )
    context: Annotated[Context, BeforeValidator(_shorthand)] | None = None
    ties: Ties | None = None
    scale: float | None = Field(
        default=None, description="factor on the whole merged delta; needs base_model"
    )
    recover: dict[str, Any] | str | None = Field(
        default=None, description="a training recipe or its file, for `regraft graft`"
    )
    evaluate: Evaluation | None = Field(
        default=None, description="an evaluation of the result, for `regraft graft`"
    )


def schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe, for editors: methods and parameters included."""
    from regraft.merge.methods.registry import get, names

    result = Body.model_json_schema(by_alias=True)
    result["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    result["title"] = "regraft merge recipe"
    result["properties"]["merge_method"]["enum"] = [*names(), *BRIDGED]
    users: dict[str, list[str]] = {}
    for method in map(get, names()):
        for parameter in method.parameters:
            users.setdefault(parameter, []).append(method.name)
    result["$defs"]["Setting"] = _SETTING_SCHEMA
    result["$defs"]["Parameters"] = {
        "type": "object",
        "properties": {
            name: {"$ref": "#/$defs/Setting", "description": f"of {', '.join(users[name])}"}
            for name in sorted(users)
        },
        "additionalProperties": {"$ref": "#/$defs/Setting"},
    }
    for block in (result, *result["$defs"].values()):
        for kind in block.get("properties", {}).get("parameters", {}).get("anyOf", ()):
            if kind.get("type") == "object":
                kind.clear()
                kind["$ref"] = "#/$defs/Parameters"
    return result
