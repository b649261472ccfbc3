"""The pages on YAML recipes: every key of their pydantic models."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from typing import Any

from annotated_types import BaseMetadata
from pydantic import BaseModel, WithJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from generate.commands import help_of
from generate.text import anchor, cell, code, described, docstring, rows
from regraft import recipe_values as values
from regraft.data.build import schema as data_schema
from regraft.graft import schema as graft_schema
from regraft.markdown import Markdown
from regraft.merge.recipe import schema as merge_schema
from regraft.merge.recipe.references import ModelRef
from regraft.merge.recipe.settings import Condition
from regraft.recipe import models_in
from regraft.train.recipe import schema as train_schema

# Blocks that hold the options of a command, which has their descriptions.
_OPTIONS: dict[type, str] = {
    graft_schema.Extract: "extract-lora",
    graft_schema.Apply: "apply",
    graft_schema.Evaluate: "evaluate",
}
_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "value",
          ModelRef: "model"}  # fmt: skip
_BOUNDS = {"ge": "{:g} or more", "gt": "more than {:g}", "le": "at most {:g}"}


def train_page() -> str:
    """The keys of a training recipe."""
    return _page("Training recipe", "train", train_schema.Body, (
        "A recipe of [`regraft train`](cli.md#regraft-train) and `regraft plan`; a block of "
        "[`regraft graft`](graft.md)."))  # fmt: skip


def data_page() -> str:
    """The keys of a data recipe."""
    return _page("Data recipe", "data build", data_schema.Body, (
        "A recipe of [`regraft data build`](cli.md#regraft-data-build); "
        "[how to choose](../how-to/data.md)."))  # fmt: skip


def merge_page() -> str:
    """The keys of a merge recipe."""
    return _page("Merge recipe", "merge", merge_schema.Body, (
        "A recipe of [`regraft merge`](cli.md#regraft-merge): mergekit's format, with a few keys "
        "more. The values of `merge_method` and their parameters are listed under "
        "[merge methods](merge-methods.md)."))  # fmt: skip


def graft_page() -> str:
    """The keys of a graft recipe."""
    return _page("Graft recipe", "graft", graft_schema.Body, (
        "A recipe of [`regraft graft`](cli.md#regraft-graft). Training blocks are "
        "[training recipes](train.md), `merge` is a [merge recipe](merge.md)."),
        elsewhere=(graft_schema.Evaluate,))  # fmt: skip


def evaluate_page() -> str:
    """The keys of an `evaluate:` block."""
    parts = [
        "# Evaluation block",
        "`evaluate:` in a [graft recipe](graft.md) or a [merge recipe](merge.md): the options of "
        "[`regraft evaluate`](cli.md#regraft-evaluate).",
        *_block(graft_schema.Evaluate, {}),
    ]
    return "\n\n".join(parts) + "\n"


def _page(
    title: str, command: str, body: type[BaseModel], text: str, elsewhere: tuple[type, ...] = ()
) -> str:
    parts = [f"# {title}", text]
    parts.append(f"The JSON schema for editors is printed by `regraft {command} --schema`.")
    titles: dict[type, str] = {}
    for keys, model in _blocks(body, ()):
        if model not in titles and model not in elsewhere:
            titles[model] = f"`{keys}`" if keys else ""
    links = {model: f"evaluate.md#{anchor('Evaluation block')}" for model in elsewhere}
    links |= {model: f"#{anchor(heading)}" for model, heading in titles.items()}
    for model, heading in titles.items():
        if heading:
            parts.append(f"## {heading}")
            parts.append(cell(" ".join(docstring(model, model.__name__).split())))
        parts += _block(model, links)
    return "\n\n".join(parts) + "\n"


def _blocks(model: type[BaseModel], keys: tuple[str, ...]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The models of a recipe with the keys that lead to them, in the order of the keys."""
    yield ".".join(keys), model
    for name, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            yield from _blocks(inner, (*keys, field.alias or name))


def _block(model: type[BaseModel], links: dict[type, str]) -> Iterator[str]:
    body = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        text = field.description or _of_command(model, name) or _of_block(field)
        body.append((
            code(key), Markdown(_type(field.annotation, tuple(field.metadata), links)),
            _default(field), cell(described(text, f"{model.__module__}.{model.__name__}.{key}")),
        ))  # fmt: skip
    yield rows(("key", "type", "default", "meaning"), body)


def _of_command(model: type[BaseModel], name: str) -> str | None:
    command = _OPTIONS.get(model)
    return help_of(command, name) if command else None


def _of_block(field: FieldInfo) -> str | None:
    """The first sentence of the docstring of the one block that the field may hold."""
    inner = list(models_in(field.annotation))
    return docstring(inner[0], inner[0].__name__).split("\n\n")[0] if len(inner) == 1 else None


def _default(field: FieldInfo) -> Markdown:
    value = field.default
    if value is PydanticUndefined and field.default_factory is None:
        return Markdown("required")
    if isinstance(value, BaseModel) or value is None or value is PydanticUndefined:
        return Markdown("")
    if isinstance(value, str | bool | int | float | list):
        plain = isinstance(value, str) and value.isprintable()
        return code(str(value) if plain else json.dumps(value))
    return code(str(value))


def _type(annotation: Any, metadata: tuple[Any, ...], links: dict[type, str]) -> str:
    """A type in words; blocks are links to their tables."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0], arguments[1:], links)
    if origin in (typing.Union, types.UnionType):
        parts = [_type(one, (), links) for one in arguments if one is not types.NoneType]
        if len(parts) == 1:
            inner = next(one for one in arguments if one is not types.NoneType)
            return _type(inner, metadata, links)
        return " or ".join(dict.fromkeys(parts))
    if origin is typing.Literal:
        return ", ".join(code(json.dumps(one).strip('"')) for one in arguments)
    if origin is list:
        return f"list of {_type(arguments[0], (), links)}"
    if origin is tuple and arguments[0] is Condition:
        return "value, gradient or filters"
    if origin is tuple:
        return f"list of {len(arguments)}: {_type(arguments[0], (), links)}"
    if origin is dict:
        inner = arguments[1]
        return "mapping" if inner is Any else f"mapping of names to {_type(inner, (), links)}"
    if choices := _choices(metadata):
        return ", ".join(map(code, choices))
    if annotation in links:
        return f"[block]({links[annotation]})"
    limits = list(_limits(metadata))
    name = "tokens, such as 64k" if _is_tokens(metadata) else _NAMES[annotation]
    if limits == ["0 or more", "at most 1"]:
        limits = ["0 to 1"]
    return ", ".join([name, *limits])


def _choices(metadata: tuple[Any, ...]) -> list[str]:
    """The values that a type with a JSON schema of its own takes, if it lists them."""
    for one in metadata:
        if isinstance(one, WithJsonSchema) and one.json_schema and "enum" in one.json_schema:
            return list(one.json_schema["enum"])
    return []


def _is_tokens(metadata: tuple[Any, ...]) -> bool:
    parsers = (values._tokens, merge_schema._tokens)
    return any(getattr(one, "func", None) in parsers for one in metadata)


def _limits(metadata: tuple[Any, ...]) -> Iterator[str]:
    for one in metadata:
        inner = one.metadata if isinstance(one, FieldInfo) else [one]
        for limit in inner:
            if isinstance(limit, BaseMetadata):
                for name, text in _BOUNDS.items():
                    if (value := getattr(limit, name, None)) is not None:
                        yield text.format(value)
