"""Stages that train: models of the recipe, the extension of the base, the recovery of a graft."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from regraft.data.sources import digest
from regraft.document import Document
from regraft.graft.blocks import GRAFTED
from regraft.graft.stages.stage import Context, Produces, Source, Stage, available
from regraft.train.corpus import text_of
from regraft.train.job import train_model
from regraft.train.recipe.recipe import Recipe
from regraft.train.recipe.schema import trains_everything
from regraft.train.setup import input_files
from regraft.write import write_text


class Train(Stage):
    """`regraft train` by a block of the recipe. models: what stands for a model in the block, such
    as 'base', and the model that it is."""

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
        kind = body.export.kind
        if kind == "adapter" or (kind == "auto" and not trains_everything(body)):
            self.produces = "adapter"

    @property
    def inputs(self) -> Mapping[str, Source]:
        return self.models

    @property
    def arguments(self) -> dict[str, Any]:
        body = self.recipe.body
        text = {source.name: digest(text_of(source, body.seed)) for source in body.data.sources}
        return {"recipe": body.model_dump(), "text": text}

    @property
    def files(self) -> list[str | Path]:
        return [path for path in input_files(self.recipe) if str(path) not in self.models]

    def run(self) -> None:
        locations = {name: source.location for name, source in self.models.items()}
        self.recipe_path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(self._resolved(locations).value, sort_keys=False, allow_unicode=True)
        write_text(self.recipe_path, text)
        train_model(self.recipe_path, self.path, device=self.context.device, **self.options)

    def check(self) -> Mapping[str, Any]:
        return self.plan({name: available(source) for name, source in self.models.items()})

    def plan(self, locations: Mapping[str, str | None]) -> Mapping[str, Any]:
        """What the training with the models at these locations will do; empty until every model
        exists. Raises InputError for what stops it."""
        made = {name: place for name, place in locations.items() if place is not None}
        if made.keys() != self.models.keys():
            return {}
        recipe = Recipe(self._resolved(made))
        record = train_model(
            recipe, self.path, device=self.context.device, dry_run=True, overwrite=True
        )
        return record.plan or {}

    def _resolved(self, locations: Mapping[str, str]) -> Document:
        """The recipe with every model in its place."""
        value = self.document.value
        changed: dict[str, Any] = {"model": _located(value["model"], locations)}
        if isinstance(value.get("recover"), dict) and "teacher" in value["recover"]:
            teacher = _located(value["recover"]["teacher"], locations)
            changed["recover"] = {**value["recover"], "teacher": teacher}
        return self.document.replaced(**changed)


class Extend(Train):
    """The training that extends the base."""

    kind = "extend"


class Recover(Train):
    """The fine-tune after a graft. stand_in: a model with the graft's context, which is checked
    while there is no graft."""

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
        places = {name: available(source) for name, source in self.models.items()}
        if GRAFTED in places and places[GRAFTED] is None:
            places[GRAFTED] = available(self.stand_in)
        return self.plan(places)


def _located(model: Any, locations: Mapping[str, str]) -> Any:
    return locations.get(model, model) if isinstance(model, str) else model
