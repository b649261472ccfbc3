"""The stage that merges a target with the adapter by a merge recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from regraft.adapters.reader import is_adapter
from regraft.document import Document
from regraft.graft.stages.stage import (
    Context,
    Given,
    Produces,
    Source,
    Stage,
    locations,
    write_recipe,
)
from regraft.input_files import JsonObject
from regraft.merge.job import merge_models
from regraft.merge.recipe.recipe import Recipe as MergeRecipe


class Merge(Stage):
    """`regraft merge` of a target by the recipe's block. models: name in the block -> the model
    that it stands for; stand_ins: models to check instead of those that are not made yet."""

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
    def arguments(self) -> JsonObject:
        return {"recipe": self.document.value, "seed": self.context.seed}

    def run(self) -> None:
        models = {name: source.location for name, source in self.models.items()}
        write_recipe(self.recipe_path, self._resolved(models))
        merge_models(
            self.recipe_path, self.path, device=self.context.device,
            seed=self.context.seed, **self.options,
        )  # fmt: skip

    def check(self) -> Mapping[str, Any]:
        models = locations(self.models, self.stand_ins)
        if models is None:
            return {}
        record = merge_models(
            MergeRecipe(self._resolved(models)), self.path, device=self.context.device,
            seed=self.context.seed, dry_run=True, overwrite=True,
        )  # fmt: skip
        return record.plan or {}

    def _resolved(self, models: Mapping[str, str]) -> Document:
        """The recipe with the locations of its models."""
        return self.document.replaced(
            **{
                key: _resolve(key, value, models)
                for key, value in self.document.value.items()
                if key not in ("recover", "evaluate")
            }
        )


def _others(recipe: MergeRecipe, known: Mapping[str, Source]) -> Iterator[tuple[str, Given]]:
    """The models and adapters that the recipe itself names, by name."""
    for reference, _ in recipe.references():
        if reference.path not in known:
            kind: Produces = "adapter" if is_adapter(reference.model) else "model"
            yield reference.model, Given(reference.model, kind)
        if reference.lora is not None and reference.adapter not in known:
            yield reference.lora, Given(reference.lora, "adapter")


_REFERENCES = ("model", "base_model", "from", "source", "tokenizer_source")


def _resolve(key: str, value: Any, models: Mapping[str, str]) -> Any:
    """The value under `key` with the locations of the models that it names."""
    if isinstance(value, dict):
        return {name: _resolve(name, inner, models) for name, inner in value.items()}
    if isinstance(value, list):
        return [_resolve(key, inner, models) for inner in value]
    if not isinstance(value, str):
        return value
    if key == "context":  # the short form of {from: NAME}
        return {"from": models[value]} if value in models else value
    # 'base' as a source of tokenizers is mergekit's word for base_model
    if key not in _REFERENCES or (key in ("source", "tokenizer_source") and value == "base"):
        return value
    return "+".join(models.get(part, part) for part in value.split("+"))


def _names_in(value: Any, names: Mapping[str, Source]) -> set[str]:
    """The names of models that a merge recipe has anywhere."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return set().union(*(_names_in(inner, names) for inner in value))
    return set(str(value).split("+")) & names.keys() if isinstance(value, str) else set()
