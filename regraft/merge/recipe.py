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
from typing import Any

from pydantic import BaseModel, ValidationError

from regraft.document import Document, Where, near, shown
from regraft.errors import InputError
from regraft.merge.schema import (
    MAX_INPUTS,
    Body,
    Context,
    InputModel,
    InputSlice,
    ModelRef,
    Module,
    OutputSlice,
    Setting,
    Ties,
    Tokenizer,
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
