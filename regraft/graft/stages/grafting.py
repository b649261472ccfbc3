"""Stages that move weights: extraction of adapters, their application, merges."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract.extract import extract_lora
from regraft.document import Document
from regraft.graft.check import check_future_graft
from regraft.graft.content import is_adapter
from regraft.graft.schema import Apply as ApplyBlock
from regraft.graft.schema import Extract as ExtractBlock
from regraft.graft.stages.stage import Context, Given, Produces, Source, Stage, available
from regraft.merge.job import merge_models
from regraft.merge.recipe.recipe import Recipe as MergeRecipe
from regraft.write import write_text


@dataclass(frozen=True)
class Point:
    """One way to make a graft. rank: as the recipe says it, None where the adapter is given."""

    adapter: Source
    scale: float
    rank: str | None


@dataclass(frozen=True)
class Origin:
    """Where an adapter comes from: what its base and extended model are."""

    base: Source | None
    extended: Source | None


class Chooser(Stage):
    """A stage that chooses among points."""

    @abstractmethod
    def chosen(self) -> Point:
        """The point to graft with. The stage must be finished."""


class Extract(Stage):
    """`regraft extract-lora` at one rank."""

    kind = "extract"
    produces: Produces = "adapter"

    def __init__(
        self,
        context: Context,
        block: ExtractBlock,
        base: Source,
        extended: Source,
        rank: int | str | None,
    ) -> None:
        label = "by-size" if rank is None else f"rank-{rank}"
        super().__init__(context, label, f"adapters/{label}")
        self.block, self.base, self.extended, self.rank = block, base, extended, rank

    @property
    def inputs(self) -> Mapping[str, Source]:
        return {"base": self.base, "extended": self.extended}

    @property
    def arguments(self) -> dict[str, Any]:
        return {**self.block.model_dump(), "rank": self.rank, "seed": self.context.seed}

    def run(self) -> None:
        extract_lora(
            self.base.location, self.extended.location, self.path,
            device=self.context.device, **self.arguments, **self.options,
        )  # fmt: skip

    def check(self) -> Mapping[str, Any]:
        base, extended = available(self.base), available(self.extended)
        if base is None or extended is None:
            return {}
        record = extract_lora(
            base, extended, self.path, device=self.context.device, dry_run=True, overwrite=True,
            **self.arguments,
        )  # fmt: skip
        return record.plan or {}


class Apply(Stage):
    """`regraft apply` of a point, or of the one that a sweep chooses. origin: of the adapter;
    policy: the output's context."""

    kind = "graft"
    produces: Produces = "model"

    def __init__(
        self,
        context: Context,
        item: str,
        out: str,
        block: ApplyBlock,
        model: Source,
        points: Sequence[Point],
        origin: Origin,
        *,
        policy: str | None,
        sweep: Chooser | None = None,
        target: str | None = None,
    ) -> None:
        super().__init__(context, item, out, target)
        self.block, self.model, self.points, self.origin = block, model, points, origin
        self.policy, self.sweep = policy, sweep

    @property
    def point(self) -> Point:
        """What is applied; a sweep must be finished."""
        if self.sweep is None:
            return self.points[0]
        return self.sweep.chosen()

    @property
    def inputs(self) -> Mapping[str, Source]:
        return {"adapter": self.point.adapter, "model": self.model}

    def needs(self) -> Iterator[Stage]:
        if self.sweep is not None:
            yield self.sweep
            if not self.sweep.is_finished():
                return
        yield from super().needs()

    def given(self) -> Iterator[Given]:
        sources = [self.model, *(point.adapter for point in self.points)]
        yield from (source for source in sources if isinstance(source, Given))

    def reads(self) -> list[str]:
        if self.sweep is not None and not self.sweep.is_finished():
            return ["the chosen adapter", self.model.location]
        return super().reads()

    @property
    def arguments(self) -> dict[str, Any]:
        return {**self.block.model_dump(), "scale": self.point.scale, "context": self.policy}

    def run(self) -> None:
        apply_lora(
            self.point.adapter.location, self.model.location, self.path,
            device=self.context.device, **self.arguments, **self.options,
        )  # fmt: skip

    def check(self) -> Mapping[str, Any]:
        model = available(self.model)
        if model is None:
            return {}
        for point in self.points:
            adapter = available(point.adapter)
            if adapter is None:
                continue
            record = apply_lora(
                adapter, model, self.path, scale=point.scale, context=self.policy,
                device=self.context.device, dry_run=True, overwrite=True, **self.block.model_dump(),
            )  # fmt: skip
            return record.plan or {}
        base = available(self.origin.base) if self.origin.base is not None else None
        extended = available(self.origin.extended) if self.origin.extended is not None else None
        if base is not None and extended is not None:
            return check_future_graft(base, extended, model, self.policy, force=self.block.force)
        return {}


class Merge(Stage):
    """`regraft merge` of a target by the recipe's block. models: what stands for a model in it;
    stand_ins: what is checked in the place of one that is not made yet."""

    kind = "graft"
    produces: Produces = "model"

    def __init__(
        self,
        context: Context,
        item: str,
        out: str,
        document: Document,
        models: Mapping[str, Source],
        stand_ins: Mapping[str, Source],
    ) -> None:
        super().__init__(context, item, out, item)
        self.document = document
        used = _names_in(document.value, models)
        self.models = {name: source for name, source in models.items() if name in used}
        self.others = dict(_others(MergeRecipe(document), models))
        self.stand_ins = stand_ins
        self.recipe_path = context.workspace.folder / "recipes" / f"{out}.yaml"

    @property
    def inputs(self) -> Mapping[str, Source]:
        return {**self.models, **self.others}

    @property
    def arguments(self) -> dict[str, Any]:
        return {"recipe": self.document.value, "seed": self.context.seed}

    def run(self) -> None:
        recipe = self._resolved({name: m.location for name, m in self.models.items()})
        self.recipe_path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(recipe.value, sort_keys=False, allow_unicode=True)
        write_text(self.recipe_path, text)
        merge_models(
            self.recipe_path, self.path, device=self.context.device,
            seed=self.context.seed, **self.options,
        )  # fmt: skip

    def check(self) -> Mapping[str, Any]:
        places = {name: self._place(name) for name in self.models}
        made = {name: place for name, place in places.items() if place is not None}
        if made.keys() != places.keys():
            return {}
        record = merge_models(
            MergeRecipe(self._resolved(made)), self.path, device=self.context.device,
            seed=self.context.seed, dry_run=True, overwrite=True,
        )  # fmt: skip
        return record.plan or {}

    def _place(self, name: str) -> str | None:
        place = available(self.models[name])
        if place is None and name in self.stand_ins:
            place = available(self.stand_ins[name])
        return place

    def _resolved(self, locations: Mapping[str, str]) -> Document:
        """The recipe with every model in its place."""
        return self.document.replaced(
            **{
                key: _resolve(key, value, locations)
                for key, value in self.document.value.items()
                if key not in ("recover", "evaluate")
            }
        )


def _others(recipe: MergeRecipe, known: Mapping[str, Source]) -> Iterator[tuple[str, Given]]:
    """The models and adapters that the recipe names itself, by name."""
    for reference, _ in recipe.references():
        if reference.path not in known:
            kind: Produces = "adapter" if is_adapter(reference.model) else "model"
            yield reference.model, Given(reference.model, kind)
        if reference.lora is not None and reference.adapter not in known:
            yield reference.lora, Given(reference.lora, "adapter")


_REFERENCES = ("model", "base_model", "from", "source", "tokenizer_source")


def _resolve(key: str, value: Any, locations: Mapping[str, str]) -> Any:
    """The value under `key` with the locations of the models that it names."""
    if isinstance(value, dict):
        return {name: _resolve(name, inner, locations) for name, inner in value.items()}
    if isinstance(value, list):
        return [_resolve(key, inner, locations) for inner in value]
    if not isinstance(value, str):
        return value
    if key == "context":  # the short form of {from: NAME}
        return {"from": locations[value]} if value in locations else value
    # 'base' as a source of tokenizers is mergekit's word for base_model
    if key not in _REFERENCES or (key in ("source", "tokenizer_source") and value == "base"):
        return value
    return "+".join(locations.get(part, part) for part in value.split("+"))


def _names_in(value: Any, names: Mapping[str, Source]) -> set[str]:
    """The names of models that stand anywhere in a merge recipe."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return set().union(*(_names_in(inner, names) for inner in value))
    return set(str(value).split("+")) & names.keys() if isinstance(value, str) else set()
