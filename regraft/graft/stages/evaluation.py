"""Stages that measure: the evaluation of a graft, and the change of its logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.evaluate.job import evaluate_models, text_files
from regraft.evaluate.result import EvaluationPlan
from regraft.evaluate.settings import Settings
from regraft.file_hashes import paths_content
from regraft.graft.change import measure_change
from regraft.graft.schema import Evaluate as EvaluateBlock
from regraft.graft.stages.stage import Context, Source, Stage, locations
from regraft.input_files import JsonObject
from regraft.job import Job
from regraft.records import write_record

CHANGE = "change.json"


class Evaluate(Stage):
    """`regraft evaluate --matrix` of one target. models: by role; stand_ins: models to check
    instead of those that are not made yet."""

    kind = "evaluate"
    version = 2

    def __init__(
        self,
        context: Context,
        item: str,
        out: str,
        block: EvaluateBlock,
        models: Mapping[str, Source],
        stand_ins: Mapping[str, Source],
    ) -> None:
        super().__init__(context, item, out, item)
        self.block, self.models, self.stand_ins = block, models, stand_ins

    @property
    def inputs(self) -> Mapping[str, Source]:
        return self.models

    @property
    def matrix(self) -> bool:
        """Whether the models have the roles of a graft; else they are only compared."""
        return "recipient" in self.models

    @property
    def files(self) -> list[str | Path]:
        block = self.block
        return [*text_files(Settings(suites=tuple(block.suites), haystack=block.haystack,
                                     qa=tuple(block.qa)))]  # fmt: skip

    @property
    def arguments(self) -> JsonObject:
        return {**self._arguments(), "files": paths_content(self.files)}

    def run(self) -> None:
        self._evaluate({name: model.location for name, model in self.models.items()})

    def check(self) -> Mapping[str, Any]:
        models = locations(self.models, self.stand_ins)
        if models is None:
            return {}
        plan = self._evaluate(models, dry_run=True)
        return plan.plan if isinstance(plan, EvaluationPlan) else {}

    def _arguments(self) -> JsonObject:
        return {**self.block.arguments(), "seed": self.context.seed}

    def _evaluate(
        self, models: Mapping[str, str], *, dry_run: bool = False, **settings: Any
    ) -> Any:
        run: JsonObject = {"dry_run": True, "overwrite": True} if dry_run else {**self.options}
        return evaluate_models(
            [f"{name}={location}" for name, location in models.items()], self.path,
            matrix=self.matrix, device=self.context.device, **self._arguments(), **run, **settings,
        )  # fmt: skip


class Compare(Stage):
    """The change of the logits from a target to its graft, on a fixed prompt."""

    kind = "compare"

    def __init__(
        self, context: Context, item: str, out: str, before: Source, after: Source
    ) -> None:
        super().__init__(context, item, out, item)
        self.before, self.after = before, after

    @property
    def inputs(self) -> Mapping[str, Source]:
        return {"before": self.before, "after": self.after}

    @property
    def arguments(self) -> JsonObject:
        return {}

    def run(self) -> None:
        with Job(self.path, **self.options).start(self.key()) as staging:
            change = measure_change(self.before.location, self.after.location, self.context.device)
            write_record(staging.folder / CHANGE, change)
            staging.publish()
