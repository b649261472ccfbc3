"""The blocks of a merge recipe: every key, its type, its default and what it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from regraft.document import RecipeValues
from regraft.errors import InputError, did_you_mean
from regraft.input_files import JsonObject
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

    model: Reference = Field(
        description="a folder or org/name[@revision]; MODEL+ADAPTER; or an adapter, on base_model"
    )
    parameters: Settings | None = Field(default=None, description="of the method, for this model")


class InputSlice(_Block):
    """An entry of a slice's `sources`: layers [first, last + 1) of a model."""

    model: Reference = Field(description="as in `models`")
    layer_range: Annotated[list[int], Field(min_length=2, max_length=2)] = Field(
        description="[first, last + 1], counted from 0"
    )
    parameters: Settings | None = Field(default=None, description="of the method, for this source")


class OutputSlice(_Block):
    """An entry of `slices`: output layers merged from as many layers of each source."""

    sources: Annotated[list[InputSlice], Field(min_length=1)] = Field(
        description="layers to merge, equally many of each model"
    )
    base_model: Reference | None = Field(default=None, description="default: the recipe's")
    residual_weight: float | None = Field(
        default=None, description="accepted and ignored, as in mergekit"
    )
    parameters: Settings | None = Field(default=None, description="of the method, for this slice")


class Module(_Block):
    """An entry of `modules`."""

    slices: list[OutputSlice] | None = Field(default=None, description="as at the top")
    models: list[InputModel] | None = Field(default=None, description="as at the top")
    parameters: Settings | None = Field(default=None, description="of the method, for this module")


class Tokenizer(_Block):
    """The output's tokenizer; mergekit's key."""

    source: Reference = Field(default=ModelRef("union"), description="'union', 'base' or a model")
    tokens: RecipeValues | None = Field(
        default=None, description="where the embedding of a token comes from, as in mergekit"
    )
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="rows of embedding and head are padded to a multiple of it"
    )


class Context(_Block):
    """The output's RoPE and length: those of an input, changed by the values given."""

    source: str | None = Field(default=None, alias="from", description="an input, or 'base'")
    theta: Annotated[float, Field(gt=1)] | None = Field(default=None, description="RoPE base")
    length: _Tokens | None = Field(default=None, description="context length")
    rope_type: str | None = Field(
        default=None, description="RoPE family: default, linear, dynamic, yarn, llama3"
    )
    factor: Annotated[float, Field(ge=1)] | None = Field(
        default=None, description="of the families that have a factor"
    )
    original: _Tokens | None = Field(default=None, description="length before extension")

    def changes(self) -> JsonObject:
        """The values given, as `extend_context` takes them."""
        return self.model_dump(exclude={"source"}, exclude_none=True)


class Ties(_Block):
    """Which of the three methods called TIES."""

    variant: Literal["mergekit", "paper", "peft"] = Field(
        default="mergekit",
        description="whose rule elects signs and divides the sum",
    )


class Body(_Block):
    """The keys of a recipe."""

    merge_method: str = Field(description="name of the method")
    base_model: Reference | None = Field(
        default=None, description="the model whose distance to the others is a delta"
    )
    models: list[InputModel] | None = Field(default=None, description="models to merge whole")
    slices: list[OutputSlice] | None = Field(
        default=None, description="instead of models: the output's layers, in order"
    )
    modules: dict[str, Module] | None = Field(
        default=None, description="instead of models: a merge for each named part of the model"
    )
    parameters: Settings | None = Field(
        default=None, description="of the method, for all models that state none"
    )
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
    space: Literal["dense", "core"] = Field(
        default="dense",
        description="core: adapters become an adapter in the joint space of their factors",
    )
    scale: float | None = Field(
        default=None, description="factor on the whole merged delta; needs base_model"
    )
    recover: RecipeValues | str | None = Field(
        default=None, description="a training recipe or its file, for `regraft graft`"
    )
    evaluate: RecipeValues | None = Field(
        default=None, description="an evaluation of the result, for `regraft graft`"
    )


def schema() -> JsonObject:
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
