"""Reads a graft recipe and reports the mistakes of all its blocks with their lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from regraft.adapters.serving import PORTABLE_CAP
from regraft.document import Document, RecipeValues, Where
from regraft.errors import InputError
from regraft.evaluate.suites import MEASURES
from regraft.graft.blocks import check_recover, include, training_block, training_blocks
from regraft.graft.schema import Body, Target, Trained, check_evaluation, in_recipe_words
from regraft.input_files import JsonObject
from regraft.lowrank.rank import parse_rule
from regraft.markdown import last_name
from regraft.merge.recipe.recipe import Recipe as MergeRecipe
from regraft.recipe import BaseRecipe, Mistakes
from regraft.train.recipe.recipe import Recipe as TrainingRecipe
from regraft.units import parse_bytes


@dataclass(frozen=True)
class TargetModel:
    """A target with its name. model: a folder or Hub id; None where `train` makes it."""

    name: str
    model: str | None
    train: RecipeValues | None
    where: Where


class Recipe(BaseRecipe[Body]):
    """A parsed graft recipe. targets: with their names, in the order of the file."""

    schema = Body
    example = "base: org/name"
    targets: list[TargetModel]

    def merge_block(self) -> Document:
        """The merge recipe of method merge, with defaults for its models and context."""
        return _merge_block(self.document)

    @property
    def ranks(self) -> list[int | str | None]:
        """The ranks to extract; None alone where energy or budget decides."""
        if self.body.ranks is not None:
            return list(dict.fromkeys(self.body.ranks))
        decided = self.body.extract.energy is not None or self.body.extract.budget is not None
        return [None] if decided else [64]

    @property
    def scales(self) -> list[float]:
        return list(dict.fromkeys(float(scale) for scale in self.body.scales))

    def check_stated(self, value: RecipeValues, mistakes: Mistakes) -> None:
        """Add the mistakes of the blocks that other commands run."""
        document = self.document
        for where in training_blocks(value):
            include(mistakes, partial(TrainingRecipe, training_block(document, *where)))
        check_recover(document, mistakes)
        if isinstance(value.get("merge"), dict):
            include(mistakes, partial(MergeRecipe, _merge_block(document)))

    def check(self, mistakes: Mistakes) -> None:
        """Add the contradictions between parts of the recipe."""
        body = self.body
        self.targets = list(self._targets())
        given = [key for key in ("extended", "adapter", "extend") if getattr(body, key) is not None]
        if len(given) != 1:
            where: Where = (given[-1],) if given else ()
            mistakes.add(where, "give one of extended, adapter and extend")
        if body.base is None and body.adapter is None:
            mistakes.add((), "'base' is missing: the model that was extended")
        if body.base is None and body.adapter is not None and body.evaluate is not None:
            mistakes.add(
                ("evaluate",),
                "grafts are compared with the donor; give base, so that base and adapter make it",
            )
        names = [target.name for target in self.targets]
        for number, target in enumerate(self.targets):
            if target.name in names[:number]:
                mistakes.add(target.where, f"two targets are called {target.name}; give a name")
        if not self.targets:
            mistakes.add(("targets",), "give at least one target")
        self._check_points(mistakes)
        self._check_method(mistakes)
        if body.evaluate is not None:
            check_evaluation(body.evaluate, ("evaluate",), mistakes)

    def _targets(self) -> Iterator[TargetModel]:
        targets = self.body.targets
        several = isinstance(targets, list)
        for number, target in enumerate(targets if isinstance(targets, list) else [targets]):
            where: Where = ("targets", number) if several else ("targets",)
            if isinstance(target, str):
                yield TargetModel(name_of(target), target, None, where)
            else:
                assert isinstance(target, Target)
                name = target.name or name_of(str(target.model))
                yield TargetModel(name, target.model, target.train, where)

    def _check_points(self, mistakes: Mistakes) -> None:
        """Add the mistakes of ranks and scales, alone and with other keys."""
        body = self.body
        if body.adapter is not None:
            for key in ("ranks", "extract"):
                if key in self.document.value:
                    mistakes.add((key,), f"adapter has its rank already; leave {key} out")
            if isinstance(body.base, Trained):
                mistakes.add(("base",), "an adapter's base exists already; name it")
        else:
            budget = body.extract.budget
            cap = PORTABLE_CAP if body.extract.layout == "portable" else None
            for rank in self.ranks:
                try:
                    parse_rule(
                        rank, body.extract.energy, parse_bytes(budget) if budget else None, cap
                    )
                except InputError as error:
                    where: Where = ("ranks",) if body.ranks is not None else ("extract",)
                    mistakes.add(where, in_recipe_words(str(error)))
        if self.is_sweep and body.evaluate is None:
            where = ("ranks",) if len(self.ranks) > 1 else ("scales",)
            mistakes.add(where, "several ranks or scales are compared by evaluate; add its block")
        elif self.is_sweep and body.evaluate and set(body.evaluate.suites) <= set(MEASURES):
            mistakes.add(("evaluate",), "a sweep compares answers; add a suite such as needle")
        for number, scale in enumerate(body.scales):
            if not scale > 0:
                mistakes.add(("scales", number), f"a scale of {scale:g} grafts nothing")

    @property
    def is_sweep(self) -> bool:
        """Whether there is more than one rank or scale."""
        ranks = 1 if self.body.adapter is not None else len(self.ranks)
        return ranks * len(self.scales) > 1

    def _check_method(self, mistakes: Mistakes) -> None:
        body = self.body
        if body.method == "apply":
            if body.apply.guard and body.base is None:
                mistakes.add(("apply", "guard"), "a guard is the recipe's base; give base")
            if body.apply.guard and self.is_sweep:
                mistakes.add(
                    ("apply", "guard"),
                    "a sweep measures the change without a guard; give one rank and one scale",
                )
            if body.merge is not None:
                mistakes.add(("merge",), "method is apply, which has no merge; say method: merge")
            return
        if body.merge is None:
            block = "merge: {merge_method: ties, parameters: {weight: 1.0, density: 0.5}}"
            mistakes.add(("method",), f"method: merge needs a merge block, such as {block}")
        if "apply" in self.document.value:
            mistakes.add(("apply",), "method is merge, which has no apply; leave it out")
        if len(self.scales) > 1 or self.scales != [1.0]:
            mistakes.add(("scales",), "scales are of method apply; a merge has weights")
        if body.adapter is None and len(self.ranks) > 1:
            mistakes.add(("ranks",), "a sweep of ranks is of method apply; give one rank")


def schema() -> JsonObject:
    """JSON schema (draft 2020-12) of a recipe, for editors."""
    result = Body.model_json_schema()
    result["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    result["title"] = "regraft graft recipe"
    return result


def _merge_block(document: Document) -> Document:
    defaults: RecipeValues = {}
    block = document.value["merge"]
    if not {"models", "slices", "modules"} & block.keys():
        defaults["models"] = [{"model": "target"}, {"model": "adapter"}]
        defaults["base_model"] = "base"
    context = document.value.get("context")
    if isinstance(context, str):
        defaults["context"] = {"checkpoint": "target"}.get(context, context)
    return document.part("merge", **{"context": "adapter", **defaults})


def name_of(model: str) -> str:
    """The last part of a folder or Hub id, without revision, as the name of a folder."""
    name = re.sub(r"[^\w.-]+", "-", last_name(model.partition("@")[0]))
    return name.strip(".-") or "target"
