"""The stage that compares ranks and scales: every point is applied, measured and not stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from regraft.adapters.reader import Adapter
from regraft.checkpoint.read.context import checkpoint_context
from regraft.checkpoint.read.source import Checkpoint
from regraft.evaluate.answers.model import folder_name
from regraft.evaluate.report.aggregate import texts_of
from regraft.evaluate.result import Answer, parse_answers, read_result
from regraft.evaluate.settings import GraftPoint
from regraft.evaluate.shared_output import read_lines
from regraft.evaluate.statistics import Ratio, mean, ratio
from regraft.evaluate.suites import choose as choose_tasks
from regraft.graft.choose import PointRecord, SweepRecord, choose
from regraft.graft.schema import Evaluate as EvaluateBlock
from regraft.graft.stages.evaluation import Evaluate
from regraft.graft.stages.grafting import Chooser, Point
from regraft.graft.stages.stage import Context, Source, available, locations
from regraft.input_files import JsonObject

_BASELINES = ("recipient", "donor")


class Sweep(Evaluate, Chooser):
    """The tasks of the evaluation, on other items than its own, for every point. loss: of retention
    that the chosen point may have; policy: of the grafts' context."""

    kind = "sweep"

    def __init__(
        self,
        context: Context,
        item: str,
        block: EvaluateBlock,
        models: Mapping[str, Source],
        points: Sequence[Point],
        *,
        loss: float,
        policy: str | None,
    ) -> None:
        tasks, _ = choose_tasks(block.suites, len(block.qa))
        files = [name for name in block.suites if ":" in name and not name.startswith("lm-eval:")]
        local = {task.name for name in files for task in choose_tasks([name], 0)[0]}
        names = [*(task.name for task in tasks if task.name not in local), *files]
        block = block.model_copy(update={"suite": names, "judge": None, "judge_model": None})
        super().__init__(context, item, f"sweeps/{item}", block, models, {})
        self.points, self.loss, self.policy = points, loss, policy

    @property
    def inputs(self) -> Mapping[str, Source]:
        return {**self.models, **{point.label: point.adapter for point in self.points}}

    @property
    def arguments(self) -> JsonObject:
        points = [[point.label, point.scale] for point in self.points]
        return {**super().arguments, "points": points, "context": self.policy}

    def check(self) -> Mapping[str, Any]:
        """With the target in place of the grafts."""
        models = locations({**self.models, "graft": self.models["recipient"]})
        if models is None:
            return {}
        plan = self._evaluate(models, dry_run=True).plan
        runs = len(_BASELINES) + len(self.points)
        seconds = plan["seconds"] * runs / len(models)
        return {**plan, "seconds": seconds, "grafts": len(self.points)}

    def run(self) -> None:
        grafts = tuple(
            GraftPoint(point.label, point.adapter.location, point.scale, self.policy)
            for point in self.points
        )
        models = {role: model.location for role, model in self.models.items()}
        self._evaluate(models, grafts=grafts)

    def _arguments(self) -> JsonObject:
        """Only what the choice reads: the greatest length and those within the target's context, no
        twins. Items of another seed, so that the choice does not flatter the later evaluation."""
        arguments = {**super()._arguments(), "seed": self.context.seed + 1, "twins": False}
        target = available(self.models["recipient"])
        if (lengths := self.block.token_lengths) and target is not None:
            with Checkpoint.open(target) as checkpoint:
                own = checkpoint_context(checkpoint).max_position_embeddings
            used = [length for length in lengths if length <= own or length == max(lengths)]
            arguments["lengths"] = ",".join(map(str, used))
        return arguments

    @cached_property
    def record(self) -> SweepRecord:
        """The points and the choice. The stage must be finished."""
        result = read_result(self.path)
        longest = max(result.settings.lengths)
        own = result.models["recipient"].context_length
        answers = {
            (model, task, length): self._answers(model, task, length)
            for model in (*_BASELINES, *(point.label for point in self.points))
            for task, cells in result.cells[model].items()
            for length in cells
        }
        gained = [
            (task, longest)
            for task, facts in result.tasks.items()
            if not facts.skill and ("recipient", task, longest) in answers
        ]
        retained = [
            (task, length)
            for model, task, length in answers
            if model == "recipient" and length <= own
        ]

        def scores(model: str, cells: list[tuple[str, int]]) -> list[float]:
            return [answer.score for cell in cells for answer in answers[model, *cell]]

        def texts(cells: list[tuple[str, int]]) -> list[int] | None:
            return texts_of([answers["recipient", *cell] for cell in cells])

        def transfer(name: str) -> Ratio | None:
            if not gained:
                return None
            graft, recipient, donor = (scores(m, gained) for m in (name, "recipient", "donor"))
            return ratio(graft, recipient, donor, recipient, texts=texts(gained))

        def retention(name: str) -> Ratio | None:
            if not retained:
                return None
            graft, recipient = scores(name, retained), scores("recipient", retained)
            return ratio(graft, None, recipient, None, texts=texts(retained))

        points = []
        for point in self.points:
            adapter = Adapter.open(point.adapter.location).record
            totals = adapter.totals if adapter is not None else None
            points.append(PointRecord(
                rank=point.rank, scale=point.scale,
                score=mean(scores(point.label, gained)) if gained else 0.0,
                transfer=transfer(point.label), retention=retention(point.label),
                bytes=totals.bytes if totals else None, error=totals.error if totals else None,
            ))  # fmt: skip
        return choose(points, longest, self.loss)

    def chosen(self) -> Point:
        """The point to graft with."""
        return self.points[self.record.chosen]

    def forget(self) -> None:
        self.__dict__.pop("record", None)
        super().forget()

    def complete(self) -> None:
        self.__dict__.pop("record", None)
        super().complete()

    def _answers(self, model: str, task: str, length: int) -> list[Answer]:
        lines = read_lines(self.path / "items" / folder_name(model) / f"{task}-{length}.jsonl")
        return parse_answers(lines)
