"""A merge recipe: mergekit 0.1.5's YAML and `context`, `ties`, `scale`, `recover`, `evaluate`.

    merge_method: ties
    base_model: meta-llama/Meta-Llama-3-8B
    models:
      - model: org/derivative
        parameters: {weight: 0.6, density: [0.3, 0.7]}        # a gradient over the layers
      - model: ./long-context-adapter                         # an adapter: a delta on the base
        parameters: {weight: [{filter: mlp, value: 0.2}, {value: 1.0}]}
    context: {from: ./long-context-adapter}
    out_dtype: bfloat16

A parameter is looked up in input, slice, module and recipe, in this order. In each of these, the
first `{filter, value}` whose filter is part of the tensor's name gives the value; no filter, or
'*', matches every tensor. Every error names its line. No model is read here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from regraft.document import RecipeValues, Where
from regraft.errors import InputError, did_you_mean
from regraft.merge.methods.registry import Method, get, names
from regraft.merge.recipe.references import ModelRef
from regraft.merge.recipe.schema import BRIDGED, MAX_INPUTS, Body, InputModel, OutputSlice
from regraft.merge.recipe.settings import Setting, parse_setting
from regraft.recipe import BaseRecipe, Mistakes

# The `parameters` of one block of the recipe, and the location of the block.
Scope = tuple[Mapping[str, Setting], Where]

# Parameters of mergekit that no native method has and that do not change a result.
_MERGEKIT_ONLY = ("int8_mask", "r", "alpha")


@dataclass(frozen=True)
class Source:
    """One input of an output slice. `layers`: [start, stop) of its layers, None for all."""

    ref: ModelRef
    layers: tuple[int, int] | None
    parameters: Mapping[str, Setting]
    where: Where


@dataclass(frozen=True)
class Slice:
    """Consecutive output layers: their inputs, their base, and parameters, innermost scope
    first."""

    sources: tuple[Source, ...]
    base: ModelRef | None
    scopes: tuple[Scope, ...]
    where: Where


class Recipe(BaseRecipe[Body]):
    """A parsed merge recipe. slices: what `models`, `slices` or `modules` of the file describe."""

    schema = Body
    example = "merge_method: linear"
    slices: tuple[Slice, ...]

    def references(self) -> list[tuple[ModelRef, Where]]:
        """Every model, once, in the order of the file, the base first."""
        references: dict[ModelRef, Where] = {}
        if self.body.base_model:
            references[self.body.base_model] = ("base_model",)
        for part in self.slices:
            for source in part.sources:
                references.setdefault(source.ref, (*source.where, "model"))
            if part.base:
                references.setdefault(part.base, (*part.where, "base_model"))
        return list(references.items())

    def scopes(self) -> Iterator[Scope]:
        """Every block of parameters; one that several slices share is repeated for each."""
        for part in self.slices:
            yield from part.scopes
            for source in part.sources:
                yield source.parameters, (*source.where, "parameters")

    @property
    def out_dtype(self) -> str | None:
        """The dtype that the recipe gives for the output."""
        return self.body.out_dtype or self.body.dtype

    def check_stated(self, value: RecipeValues, mistakes: Mistakes) -> None:
        """Check the method's name and the parameters, which the schema does not know."""
        name = value.get("merge_method")
        if not isinstance(name, str) or name in BRIDGED:
            return
        if name in names():
            blocks = {key: value.get(key) for key in ("models", "slices", "modules", "parameters")}
            _check_parameters(get(name), _stated_scopes(blocks, ()), mistakes)
        else:
            known = sorted([*names(), *BRIDGED])
            mistakes.add(
                ("merge_method",), f"'{name}' is not a merge method{did_you_mean(name, known)}; "
                f"the methods are {', '.join(known)}",
            )  # fmt: skip

    def check(self, mistakes: Mistakes) -> None:
        """Set `slices`, and report keys that contradict each other."""
        self.slices = tuple(self._slices(mistakes))
        body = self.body
        if body.tokenizer and body.tokenizer_source:
            mistakes.add(("tokenizer_source",), "give either tokenizer or tokenizer_source")
        if body.scale is not None and body.base_model is None:
            mistakes.add(("scale",), "scale is a factor on the change of base_model; name one")
        if body.context is not None and not body.context.model_dump(exclude_none=True):
            mistakes.add(
                ("context",), "give one of from, theta, length, rope_type, factor, original"
            )
        count = len(self.references())
        if count > MAX_INPUTS:
            mistakes.add(
                (), f"it names {count} models and at most {MAX_INPUTS} merge at once; merge groups"
            )
        for part in self.slices:
            _check_slice(part, mistakes)

    def _slices(self, mistakes: Mistakes) -> Iterator[Slice]:
        body = self.body
        present = [key for key in ("models", "slices", "modules") if getattr(body, key) is not None]
        if len(present) != 1 or not getattr(body, present[0]):
            where: Where = (present[-1],) if present else ()
            mistakes.add(where, "give one of 'models', 'slices' and 'modules', not empty")
            return
        outer = ((body.parameters or {}, ("parameters",)),)
        if body.modules is None:
            yield from self._of(body.models, body.slices, outer, ())
            return
        for name, module in body.modules.items():
            where = ("modules", name)
            if (module.models is None) == (module.slices is None):
                mistakes.add(where, "give either 'models' or 'slices' in a module")
                continue
            scope = (module.parameters or {}, (*where, "parameters"))
            yield from self._of(module.models, module.slices, (scope, *outer), where)

    def _of(
        self,
        models: list[InputModel] | None,
        slices: list[OutputSlice] | None,
        outer: tuple[Scope, ...],
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


def _check_slice(part: Slice, mistakes: Mistakes) -> None:
    """Report a model that is twice in the slice, and layer ranges of different lengths."""
    lengths = set()
    seen: set[ModelRef] = set()
    for source in part.sources:
        if source.ref in seen:
            mistakes.add(
                (*source.where, "model"),
                f"{source.ref} is in the same slice twice; give it once, with the summed weight",
            )
        seen.add(source.ref)
        if source.layers is None:
            continue
        start, stop = source.layers
        if 0 <= start < stop:
            lengths.add(stop - start)
        else:
            mistakes.add(
                (*source.where, "layer_range"),
                f"layer_range [{start}, {stop}] holds no layers; it is [first, last + 1], from 0",
            )
    if len(lengths) > 1:
        mistakes.add(part.where, "all layer_ranges of a slice must be of one length")


def _stated_scopes(value: Any, where: Where) -> Iterator[Scope]:
    """The `parameters` blocks in these values of the YAML, without settings that do not parse."""
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        if key == "parameters" and isinstance(item, dict):
            settings = {}
            for name, stated in item.items():
                with suppress(ValueError):  # the schema reports it
                    settings[name] = parse_setting(stated)
            yield settings, (*where, key)
        else:
            yield from _stated_scopes(item, (*where, key))


def _check_parameters(method: Method, scopes: Iterable[Scope], mistakes: Mistakes) -> None:
    """Report names that are no parameter of any method, and values that this method refuses."""
    elsewhere = {name for other in names() for name in get(other).parameters}
    for settings, where in scopes:
        for name, conditions in settings.items():
            parameter = method.parameters.get(name)
            if parameter is None:
                if name not in elsewhere and name not in _MERGEKIT_ONLY:
                    hint = did_you_mean(name, method.parameters)
                    known = ", ".join(method.parameters) or "none"
                    mistakes.add(
                        (*where, name),
                        f"no method has a parameter '{name}'{hint}; {method.name} has: {known}",
                    )
                continue
            for condition in conditions:
                for value in condition.values:
                    try:
                        parameter.parse(value)
                    except InputError as error:
                        mistakes.add((*where, name), str(error))
