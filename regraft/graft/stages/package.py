"""The stage that makes a model ready to use and to upload: weights, tokenizer, card, evidence."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from regraft.adapters.folder import RECORD
from regraft.checkpoint.read.source import Checkpoint
from regraft.evaluate.result import read_result
from regraft.graft.change import LogitChange
from regraft.graft.content import model_files
from regraft.graft.report.card import CardFacts, write_model_card
from regraft.graft.report.licences import licence_of
from regraft.graft.stages.evaluation import CHANGE, Compare, Evaluate
from regraft.graft.stages.grafting import Apply
from regraft.graft.stages.stage import Context, Given, Produces, Source, Stage
from regraft.graft.stages.sweep import Sweep
from regraft.input_files import JsonObject
from regraft.job import Job
from regraft.markdown import hub_id
from regraft.records import read_record
from regraft.rope import ContextSpec
from regraft.write import copy_file

_LINKED_ABOVE = 16 << 20  # bytes


class Package(Stage):
    """The result of a target in a folder of its own. graft: the stage that made it; sources: the
    models that the change comes from, by role; compare, report, sweep: the measurements."""

    kind = "card"
    produces: Produces = "model"

    def __init__(
        self,
        context: Context,
        item: str,
        recipe: str,
        graft: Stage,
        result: Stage,
        target: Source,
        sources: Mapping[str, Source],
        compare: Compare,
        report: Evaluate | None,
        sweep: Sweep | None,
    ) -> None:
        super().__init__(context, item, f"models/{item}", item)
        self.item, self.recipe, self.graft, self.result = item, recipe, graft, result
        self.model, self.sources = target, sources
        self.compare, self.report, self.sweep = compare, report, sweep

    @property
    def inputs(self) -> Mapping[str, Source]:
        stages = {
            "result": self.result, "change": self.compare, "report": self.report,
            "sweep": self.sweep,
        }  # fmt: skip
        return {name: stage for name, stage in stages.items() if stage is not None}

    @property
    def arguments(self) -> JsonObject:
        point = self.graft.point if isinstance(self.graft, Apply) else None
        return {
            "recipe": self.recipe,
            "sources": {role: source.location for role, source in self.sources.items()},
            "rank": point.rank if point else None,
            "scale": point.scale if point else None,
        }

    def run(self) -> None:
        with Job(self.path, **self.options).start(self.key()) as staging:
            with Checkpoint.open(self.result.location) as made:
                paths = model_files(made)
                after = ContextSpec.from_config(made.config)
            index = self.result.path / "model.safetensors.index.json"
            for path in (index, self.graft.path / RECORD):
                if path.is_file():
                    paths[path.name] = path
            for name, path in paths.items():
                _link_or_copy(path, staging.folder / name)
            write_model_card(staging.folder, self._facts(after))
            staging.publish()

    @property
    def how(self) -> str:
        """How the graft was made; it must be finished."""
        return self.graft.point.label if isinstance(self.graft, Apply) else "merged"

    @property
    def story(self) -> str:
        """The models of the graft in one sentence; it must be finished."""
        models = {role: source.location for role, source in self.sources.items()}
        recovered = ", then recovered by a short fine-tune" if self.result is not self.graft else ""
        if "extended" in models:
            what = f"what {models['extended']} learned over {models['base']}"
        elif "adapter" in models:
            what = f"the adapter {models['adapter']}"
        else:
            return f"{' and '.join(models.values())}, {self.how}{recovered}."
        return f"{self.model.location} with {what} grafted on ({self.how}){recovered}."

    def _facts(self, after: ContextSpec) -> CardFacts:
        with Checkpoint.open(self.model.location) as target:
            before = ContextSpec.from_config(target.config)
            target_id = hub_id(target.name, target.revision)
        models = [*self.sources.values(), self.model]
        given = [(model.location, model.produces) for model in models if isinstance(model, Given)]
        change = read_record(self.compare.path / CHANGE, LogitChange, "run regraft graft again")
        return CardFacts(
            name=self.item,
            story=self.story,
            hub_id=target_id,
            before=before,
            after=after,
            recipe=self.recipe,
            licences=[
                licence_of(location, adapter=produces == "adapter")
                for location, produces in dict.fromkeys(given)
            ],
            change=change,
            report=read_result(self.report.path) if self.report is not None else None,
            sweep=self.sweep.record if self.sweep is not None else None,
        )


def _link_or_copy(source: Path, path: Path) -> None:
    """Copy a file; a large one is a hard link where the disk has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if source.stat().st_size > _LINKED_ABOVE:
        try:
            os.link(source.resolve(), path)
        except OSError:  # another disk, or one without links
            copy_file(source, path)
    else:
        copy_file(source, path)
