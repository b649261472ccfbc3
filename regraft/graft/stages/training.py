"""Stages that train: models of the recipe, the extension of the base, the recovery of a graft."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.data.sources import digest
from regraft.document import Document, RecipeValues
from regraft.graft.blocks import GRAFTED
from regraft.graft.stages.stage import Context, Produces, Source, Stage, locations, write_recipe
from regraft.input_files import JsonObject
from regraft.train.corpus import text_of
from regraft.train.job import train_model
from regraft.train.recipe.recipe import Recipe
from regraft.train.recipe.schema import exports_adapter
from regraft.train.setup import input_files


class Train(Stage):
    """`regraft train` by a block of the recipe. models: name in the block, such as 'base' -> the
    model that it stands for."""

    kind = "train"
    produces: Produces = "model"

    def __init__(
        self,
        context: Context,
        item: str | None,
        out: str,
        document: Document,
        models: Mapping[str, Source],
        target: str | None = None,
    ) -> None:
        super().__init__(context, item, out, target)
        self.document = document
        self.recipe = Recipe(document)
        body = self.recipe.body
        used = {name for name in (body.model, body.recover.teacher) if isinstance(name, str)}
        self.models = {name: source for name, source in models.items() if name in used}
        self.recipe_path = context.workspace.folder / "recipes" / f"{Path(out).as_posix()}.yaml"
        if exports_adapter(body):
            self.produces = "adapter"

    @property
    def inputs(self) -> Mapping[str, Source]:
        return self.models

    @property
    def arguments(self) -> JsonObject:
        body = self.recipe.body
        text = {source.name: digest(text_of(source, body.seed)) for source in body.data.sources}
        return {"recipe": body.model_dump(), "text": text}

    @property
    def files(self) -> list[str | Path]:
        return [path for path in input_files(self.recipe) if str(path) not in self.models]

    def run(self) -> None:
        models = {name: source.location for name, source in self.models.items()}
        write_recipe(self.recipe_path, self._resolved(models))
        train_model(self.recipe_path, self.path, device=self.context.device, **self.options)

    def check(self) -> Mapping[str, Any]:
        return self.plan({})

    def plan(self, stand_ins: Mapping[str, Source]) -> Mapping[str, Any]:
        """The plan of the training with `stand_ins` for models that are not made yet; empty while
        a model is missing. Raises InputError for what stops the training."""
        models = locations(self.models, stand_ins)
        if models is None:
            return {}
        recipe = Recipe(self._resolved(models))
        record = train_model(
            recipe, self.path, device=self.context.device, dry_run=True, overwrite=True
        )
        return record.plan or {}

    def _resolved(self, models: Mapping[str, str]) -> Document:
        """The recipe with the locations of its models."""
        value = self.document.value
        changed: RecipeValues = {"model": _located(value["model"], models)}
        if isinstance(value.get("recover"), dict) and "teacher" in value["recover"]:
            teacher = _located(value["recover"]["teacher"], models)
            changed["recover"] = {**value["recover"], "teacher": teacher}
        return self.document.replaced(**changed)


class Extend(Train):
    """The training that extends the base."""

    kind = "extend"


class Recover(Train):
    """The fine-tune after a graft. stand_in: a model with the graft's context, to check while
    there is no graft."""

    kind = "recover"

    def __init__(
        self,
        context: Context,
        item: str,
        out: str,
        document: Document,
        models: Mapping[str, Source],
        target: str,
        *,
        stand_in: Source,
    ) -> None:
        super().__init__(context, item, out, document, models, target)
        self.stand_in = stand_in

    def check(self) -> Mapping[str, Any]:
        return self.plan({GRAFTED: self.stand_in})


def _located(model: Any, models: Mapping[str, str]) -> Any:
    return models.get(model, model) if isinstance(model, str) else model
