"""The steps that a recipe may name, one field each; the docstring of a step describes it."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from regraft.data.build.step import Step
from regraft.data.build.steps.chat import Chat
from regraft.data.build.steps.dedup import Dedup
from regraft.data.build.steps.diversity import Diversity
from regraft.data.build.steps.length import Length
from regraft.data.build.steps.long_dependency import LongDependency
from regraft.data.build.steps.mix import Mix
from regraft.data.build.steps.quality import Quality
from regraft.data.build.steps.rephrase import Rephrase
from regraft.data.build.steps.structure import Structure
from regraft.data.build.steps.tasks import Tasks
from regraft.recipe_values import Block


class StepEntry(Block):
    """One step: its name over its settings, or its name alone."""

    chat: Chat | None = None
    dedup: Dedup | None = None
    diversity: Diversity | None = None
    length: Length | None = None
    long_dependency: LongDependency | None = None
    mix: Mix | None = None
    quality: Quality | None = None
    rephrase: Rephrase | None = None
    structure: Structure | None = None
    tasks: Tasks | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {value: {}}
        if isinstance(value, dict):
            return {key: {} if inner is None else inner for key, inner in value.items()}
        return value

    @model_validator(mode="after")
    def _one_step(self) -> StepEntry:
        if len(self._given()) != 1:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def step(self) -> Step:
        """The step that the entry names."""
        return self._given()[0]

    def _given(self) -> list[Step]:
        values = [getattr(self, key) for key in type(self).model_fields]
        return [value for value in values if value is not None]
