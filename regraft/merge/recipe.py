"""A merge recipe: mergekit 0.1.5's YAML, plus `context`, `ties`, `scale`, `recover`, `evaluate`.

    merge_method: ties
    base_model: meta-llama/Meta-Llama-3-8B
    models:
      - model: org/derivative
        parameters: {weight: 0.6, density: [0.3, 0.7]}        # a gradient over the layers
      - model: ./long-context-adapter                         # an adapter: a delta on the base
        parameters: {weight: [{filter: mlp, value: 0.2}, {value: 1.0}]}
    context: {from: ./long-context-adapter}
    out_dtype: bfloat16

A parameter is looked up in input, slice, module and recipe, in this order; in each, the first
`{filter, value}` whose filter is part of the tensor's name holds (no filter, or '*', is always).
Every error names the line. Nothing of a model is read here: see `plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
)

from regraft.document import Document, Where, near, shown
from regraft.errors import InputError
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
    raise ValueError(f"{shown(value)} is not a model such as org/name, path@rev or model+adapter")


def _path(text: str) -> tuple[str, str | None] | None:
    """(path, revision) of one side of a '+'; None if it cannot be one."""
    if text and Path(text).expanduser().exists():
        return text, None
    path, at, revision = text.partition("@")
    if not path.strip() or "+" in text or "@" in revision or bool(at) != bool(revision):
        return None
    return path, revision or None


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
                f"{shown(item)} is not {{filter: part of a tensor's name, value: ...}}"
            )
        chosen, inner = item.get("filter"), item["value"]
        if chosen is not None and not isinstance(chosen, str):
            raise ValueError(f"the filter {shown(chosen)} is not a part of a tensor's name")
        if isinstance(inner, list) and inner and all(_is_scalar(part) for part in inner):
            inner = tuple(inner)
        elif not _is_scalar(inner):
            raise ValueError(f"the value {shown(inner)} is not a number, word or list of them")
        result.append(Condition(chosen, inner))
    return tuple(result)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _dtype(value: Any) -> str:
    name = str(value).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"'{value}' is not one of {', '.join(DTYPES)}{near(name, DTYPES)}")
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


@dataclass(frozen=True)
class Source:
    """One input of an output slice. `layers`: [start, stop) of its layers, None for all."""

    ref: ModelRef
    layers: tuple[int, int] | None
    parameters: Mapping[str, Setting]
    where: Where


@dataclass(frozen=True)
class Slice:
    """A run of output layers: its inputs, its base, and its parameters, innermost scope first."""

    sources: tuple[Source, ...]
    base: ModelRef | None
    scopes: tuple[tuple[Mapping[str, Setting], Where], ...]
    where: Where


class Recipe:
    """A parsed recipe file. `body`: its keys; `slices`: what is merged, in one form for all three
    spellings; `fail`: InputError with a line of the file."""

    def __init__(self, document: Document) -> None:
        self.document = document
        if not isinstance(document.value, dict):
            raise self.error((), "a recipe is a mapping such as 'merge_method: linear'.")
        try:
            self.body = Body.model_validate(document.value)
        except ValidationError as error:
            raise self._explained(error) from None
        self.slices = tuple(self._slices())
        self._check()

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read and check a file. Raises InputError: file, line, what is wrong, what to do."""
        return cls(Document.read(path))

    def error(self, where: Where, message: str) -> InputError:
        """The error to raise, with the file and the line of `where`."""
        return self.document.error(where, message)

    def references(self) -> list[tuple[ModelRef, Where]]:
        """Every model, once, in the order of the file, the base first."""
        found: dict[ModelRef, Where] = {}
        if self.body.base_model:
            found[self.body.base_model] = ("base_model",)
        for part in self.slices:
            for source in part.sources:
                found.setdefault(source.ref, (*source.where, "model"))
            if part.base:
                found.setdefault(part.base, (*part.where, "base_model"))
        return list(found.items())

    @property
    def out_dtype(self) -> str | None:
        return self.body.out_dtype or self.body.dtype

    def _slices(self) -> Iterator[Slice]:
        body = self.body
        given = [key for key in ("models", "slices", "modules") if getattr(body, key) is not None]
        if len(given) != 1 or not getattr(body, given[0]):
            where: Where = (given[-1],) if given else ()
            raise self.error(where, "give one of 'models', 'slices' and 'modules', not empty.")
        outer = ((body.parameters or {}, ("parameters",)),)
        if body.modules is None:
            yield from self._of(body.models, body.slices, outer, ())
            return
        for name, module in body.modules.items():
            where = ("modules", name)
            if (module.models is None) == (module.slices is None):
                raise self.error(where, "give either 'models' or 'slices' in a module.")
            scope = (module.parameters or {}, (*where, "parameters"))
            yield from self._of(module.models, module.slices, (scope, *outer), where)

    def _of(
        self,
        models: list[InputModel] | None,
        slices: list[OutputSlice] | None,
        outer: tuple[tuple[Mapping[str, Setting], Where], ...],
        where: Where,
    ) -> Iterator[Slice]:
        base = self.body.base_model
        if models is not None:
            at = (*where, "models")
            sources = [
                Source(item.model, None, item.parameters or {}, (*at, i))
                for i, item in enumerate(models)
            ]
            if base is not None and all(source.ref != base for source in sources):
                sources.append(Source(base, None, {}, ("base_model",)))
            yield Slice(tuple(sources), base, outer, at)
        for i, part in enumerate(slices or ()):
            at = (*where, "slices", i)
            scope = (part.parameters or {}, (*at, "parameters"))
            inner = tuple(
                Source(
                    item.model,
                    (item.layer_range[0], item.layer_range[1]),
                    item.parameters or {},
                    (*at, "sources", j),
                )
                for j, item in enumerate(part.sources)
            )
            yield Slice(inner, part.base_model or base, (scope, *outer), at)

    def _check(self) -> None:
        body = self.body
        if body.tokenizer and body.tokenizer_source:
            raise self.error(("tokenizer_source",), "give either tokenizer or tokenizer_source.")
        if body.scale is not None and body.base_model is None:
            raise self.error(("scale",), "scale is a factor on the change of base_model; name one.")
        if body.context is not None and not body.context.model_dump(exclude_none=True):
            raise self.error(
                ("context",), "say which: from, theta, length, rope_type, factor, original."
            )
        count = len(self.references())
        if count > MAX_INPUTS:
            raise self.error(
                (), f"it names {count} models and at most {MAX_INPUTS} merge at once; merge groups."
            )
        for part in self.slices:
            lengths = set()
            seen: dict[ModelRef, Source] = {}
            for source in part.sources:
                if source.ref in seen:
                    raise self.error(
                        (*source.where, "model"),
                        f"{source.ref} is in the same slice twice; give it once, with the summed "
                        "weight.",
                    )
                seen[source.ref] = source
                if source.layers is not None:
                    start, stop = source.layers
                    if not 0 <= start < stop:
                        raise self.error(
                            (*source.where, "layer_range"),
                            f"layer_range [{start}, {stop}] holds no layers; it is [first, last + "
                            "1], from 0.",
                        )
                    lengths.add(stop - start)
            if len(lengths) > 1:
                raise self.error(part.where, "all layer_ranges of a slice must be of one length.")

    def _explained(self, error: ValidationError) -> InputError:
        """The first of pydantic's errors as one sentence: misspelt keys, then by line."""
        found = []
        for item in error.errors(include_url=False):
            where, block = _place(item["loc"], self.document.value)
            found.append((self.document.line(where), where, block, item))
        _, where, block, item = min(
            found, key=lambda entry: (entry[3]["type"] != "extra_forbidden", entry[0])
        )
        key = ".".join(str(part) for part in where)
        kind, message = item["type"], item["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden":
            known = [field.alias or name for name, field in block.model_fields.items()]
            name = str(item["loc"][-1])
            return self.error(
                where, f"'{name}' is no key here{near(name, known)}; known are {', '.join(known)}."
            )
        if kind == "missing":
            return self.error(where, f"'{item['loc'][-1]}' is missing.")
        if kind == "value_error":
            return self.error(where, f"{key}: {message}.")
        if kind == "recursion_loop":
            return self.error(where, f"{key} refers to itself.")
        what = f"{message[:1].lower()}{message[1:]}"
        return self.error(where, f"{key}: {what}, not {shown(item['input'])}.")


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


def _place(loc: tuple[int | str, ...], value: Any) -> tuple[Where, type[BaseModel]]:
    """Pydantic's location as one in the YAML (it adds names of types), and the block around it."""
    where: Where = ()
    block: type[BaseModel] = Body
    blocks: dict[str, type[BaseModel]] = {
        "models": InputModel, "slices": OutputSlice, "sources": InputSlice, "modules": Module,
        "tokenizer": Tokenizer, "context": Context, "ties": Ties,
    }  # fmt: skip
    for i, part in enumerate(loc):
        keys: Any = value if isinstance(value, dict) else ()
        keys = range(len(value)) if isinstance(value, list) else keys
        if part not in keys:
            continue
        where, value = (*where, part), value[part]
        if i + 1 < len(loc) and part in blocks:
            block = blocks[str(part)]
    return where, block
