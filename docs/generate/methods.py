"""The page on merge methods: paper, rule and parameters of each, from their registry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from generate.text import cell, code, described, paragraphs, rows
from regraft.markdown import Markdown
from regraft.merge.methods.parameter import Parameter
from regraft.merge.methods.registry import Method, get, names
from regraft.merge.recipe.schema import BRIDGED

_INTRODUCTION = f"""\
# Merge methods

The values of `merge_method`, with their `parameters`. A value marked "per model" can be given to
each model; every value can be a number, a gradient over the layers, or chosen by filters on tensor
names. [How merging works](../explanation/merging.md) has what they share. {", ".join(BRIDGED)} have
no native form and run in mergekit."""


def page() -> str:
    """Every native method under its name."""
    parts = [_INTRODUCTION]
    for name in names():
        parts += _method(get(name))
    return "\n\n".join(parts) + "\n"


def _method(method: Method) -> Iterator[str]:
    yield f"## {method.name}"
    facts = [cell(method.paper), f"base model: {method.base}"]
    low, high = method.inputs
    besides = " besides the base" if method.base == "required" else ""
    facts.append(f"models{besides}: {low if low == high else f'{low} or more'}")
    if method.stochastic:
        facts.append("random, by `--seed`")
    if method.experimental:
        facts.append("experimental on language models")
    yield f"{'; '.join(facts)}."
    yield paragraphs(described_blocks(method))
    body = [
        (code(one.name), _kind(one), _default(one), Markdown("yes" if one.per_input else ""))
        for one in method.parameters.values()
    ]
    if body:
        yield rows(("parameter", "type", "default", "per model"), body)


def described_blocks(method: Method) -> str:
    """The method's rule. Raises MissingDescription where its function has no docstring."""
    described(method.doc, f"merge method {method.name}")
    return method.doc


def _kind(parameter: Parameter) -> Markdown:
    if parameter.choices:
        return Markdown(", ".join(map(code, parameter.choices)))
    name = {float: "number", int: "integer", bool: "true or false", str: "text"}[parameter.kind]
    if parameter.bounds:
        low, high = parameter.bounds
        name += f", {low:g} to {high:g}" if high != float("inf") else f", {low:g} or more"
    return Markdown(name)


def _default(parameter: Parameter) -> Markdown:
    if parameter.required:
        return Markdown("required")
    value: Any = parameter.default
    if value is None:
        return Markdown("none")
    return code(str(value).lower() if isinstance(value, bool) else f"{value}")
