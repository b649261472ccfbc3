"""The blocks of a merge recipe: every key, its type, its default and what it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from regraft.errors import InputError, did_you_mean
from regraft.merge.recipe.references import ModelRef, Reference
from regraft.merge.recipe.settings import SETTING_SCHEMA, Settings
from regraft.units import parse_tokens

MAX_INPUTS = 256
# mergekit's methods that have no native form
BRIDGED = ("arcee_fusion", "ram", "ramplus_tl")
DTYPES = ("float32", "bfloat16", "float16", "float64")


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
    """`context: NAME` and `context: theta=..,length=..` as mappings."""
    if not isinstance(value, str):
        return value
    if "=" not in value:
        return {"from": value}
    items = [item.partition("=") for item in value.split(",")]
    return {key.strip(): text.strip() for key, _, text in items}


_Dtype = Annotated[str, BeforeValidator(_dtype), WithJsonSchema({"enum": list(DTYPES)})]
_Tokens = Annotated[int, BeforeValidator(_tokens), WithJsonSchema({"type": ["integer", "string"]})]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class InputModel(_Block):
    """An entry of `models`."""

    model: Reference
    parameters: Settings | None = None


class InputSlice(_Block):
    """An entry of a slice's `sources`: layers [first, last + 1) of a model."""

    model: Reference
    layer_range: Annotated[list[int], Field(min_length=2, max_length=2)]
    parameters: Settings | None = None


class OutputSlice(_Block):
    """An entry of `slices`: output layers merged from as many layers of each source."""

    sources: Annotated[list[InputSlice], Field(min_length=1)]
    base_model: Reference | None = None
    residual_weight: float | None = None  # mergekit accepts and ignores it
    parameters: Settings | None = None


class Module(_Block):
    """An entry of `modules`."""

    slices: list[OutputSlice] | None = None
    models: list[InputModel] | None = None
    parameters: Settings | None = None


class Tokenizer(_Block):
    """The output's tokenizer; mergekit's key."""

    source: Reference = Field(default=ModelRef("union"), description="'union', 'base' or a model")
    tokens: dict[str, Any] | None = None
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None


class Context(_Block):
    """The output's RoPE and length: those of an input, changed by the values given."""

    source: str | None = Field(default=None, alias="from", description="an input, or 'base'")
    theta: Annotated[float, Field(gt=1)] | None = None
    length: _Tokens | None = None
    rope_type: str | None = None
    factor: Annotated[float, Field(ge=1)] | None = None
    original: _Tokens | None = None

    def changes(self) -> dict[str, Any]:
        """The values given, as `extend_context` takes them."""
        return self.model_dump(exclude={"source"}, exclude_none=True)


class Ties(_Block):
    """Which of the three methods called TIES."""

    variant: Literal["mergekit", "paper", "peft"] = "mergekit"


class Body(_Block):
    """The keys of a recipe."""

    merge_method: str
    base_model: Reference | None = None
    models: list[InputModel] | None = None
    slices: list[OutputSlice] | None = None
    modules: dict[str, Module] | None = None
    parameters: Settings | None = None
    dtype: _Dtype | None = Field(
        default=None, description="of the output; the arithmetic is float32 whatever it says"
    )
    out_dtype: _Dtype | None = Field(default=None, description="of the output, before dtype")
    tokenizer_source: Reference | None = Field(
        default=None, description="'union', 'base' or a model"
    )
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
    evaluate: dict[str, Any] | None = Field(
        default=None, description="an evaluation of the result, for `regraft graft`"
    )


def schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe, for editors; it has all methods and parameters."""
    from regraft.merge.methods.registry import get, names

    result = Body.model_json_schema(by_alias=True)
    result["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    result["title"] = "regraft merge recipe"
    result["properties"]["merge_method"]["enum"] = [*names(), *BRIDGED]
    users: dict[str, list[str]] = {}
    for method in map(get, names()):
        for parameter in method.parameters:
            users.setdefault(parameter, []).append(method.name)
    result["$defs"]["Setting"] = SETTING_SCHEMA
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
