"""The stages of a job, in the order in which they run, from its recipe."""

from __future__ import annotations

from regraft.adapters.reader import is_adapter
from regraft.errors import InputError, closest_name
from regraft.graft.blocks import GRAFTED, recover_block, training_block
from regraft.graft.merge_job import RESULT, MergeJob
from regraft.graft.recipe import Recipe, TargetModel, name_of
from regraft.graft.schema import Trained
from regraft.graft.stages.evaluation import Compare, Evaluate
from regraft.graft.stages.grafting import Apply, Extract, Origin, Point
from regraft.graft.stages.merging import Merge
from regraft.graft.stages.package import Package
from regraft.graft.stages.stage import Context, Given, Source, Stage
from regraft.graft.stages.sweep import Sweep
from regraft.graft.stages.training import Extend, Recover, Train


def make_stages(recipe: Recipe, context: Context) -> list[Stage]:
    """Every stage after those that it needs; the stages of a target follow one another."""
    return _Planner(recipe, context).stages


class _Planner:
    """Adds the stages in their order. base, extended, donor: the job's models with these roles."""

    def __init__(self, recipe: Recipe, context: Context) -> None:
        self.context, self.recipe, self.body = context, recipe, recipe.body
        self.stages: list[Stage] = []
        self.base = self._base()
        self.extended: Source | None = None
        self.points = self._points()
        self.donor = self._donor()
        for target in self.recipe.targets:
            self._target(target)

    def _base(self) -> Source | None:
        if isinstance(self.body.base, Trained):
            document = training_block(self.recipe.document, "base", "train")
            return self._add(Train(self.context, "base", "trained/base", document, {}))
        return Given(self.body.base) if self.body.base is not None else None

    def _points(self) -> list[Point]:
        """Every rank with every scale."""
        adapters: dict[str | None, Source] = {}
        if self.body.adapter is not None:
            adapters[None] = Given(self.body.adapter, "adapter")
        else:
            assert self.base is not None
            extended = self._extended(self.base)
            if extended.produces == "adapter":  # a LoRA training
                adapters[None] = extended
            else:
                self.extended = extended
                for rank in self.recipe.ranks:
                    stage = Extract(self.context, self.body.extract, self.base, extended, rank)
                    adapters["by size" if rank is None else str(rank)] = self._add(stage)
        return [
            Point(adapter, scale, rank)
            for rank, adapter in adapters.items()
            for scale in self.recipe.scales
        ]

    def _extended(self, base: Source) -> Source:
        if self.body.extended is not None:
            return Given(self.body.extended)
        document = training_block(self.recipe.document, "extend")
        return self._add(Extend(self.context, None, "trained/extended", document, {"base": base}))

    def _donor(self) -> Source | None:
        """The model that grafts are compared with: the extended one, or base with adapter."""
        if self.extended is not None or self.base is None or self.body.evaluate is None:
            return self.extended
        point = Point(self.points[0].adapter, 1.0, None)
        stage = Apply(
            self.context, "donor", "grafts/donor", self.body.apply, self.base, [point],
            self._origin(), policy="adapter",
        )  # fmt: skip
        return self._add(stage)

    def _origin(self) -> Origin:
        return Origin(self.base, self.extended)

    def _target(self, target: TargetModel) -> None:
        """Graft, recovery and measurements of one target."""
        name, model = target.name, self._target_model(target)
        sweep = self._sweep(name, model)
        graft = self._graft(name, model, sweep)
        result, models = graft, {"recipient": model, "donor": self.donor, "graft": graft}
        if self.body.recover is not None:
            result = models["recovered"] = self._recover(name, model, graft)
        compare = Compare(self.context, name, f"changes/{name}", model, result)
        self._add(compare)
        report = None
        if self.body.evaluate is not None:
            present = {role: source for role, source in models.items() if source is not None}
            stand_ins = dict.fromkeys(("graft", "recovered"), model)
            report = Evaluate(
                self.context, name, f"reports/{name}", self.body.evaluate, present, stand_ins
            )
            self._add(report)
        package = Package(
            self.context, name, self.recipe.document.text, graft, result, model, self._sources(),
            compare, report, sweep,
        )  # fmt: skip
        self._add(package)

    def _sources(self) -> dict[str, Source]:
        """The models that the change comes from, by role."""
        if self.base is not None and self.extended is not None:
            return {"base": self.base, "extended": self.extended}
        return {"adapter": self.points[0].adapter}

    def _target_model(self, target: TargetModel) -> Source:
        if target.model is not None:
            return Given(target.model)
        where = (*target.where, "train")
        known = {"base": self.base} if self.base is not None else {}
        stage = Train(
            self.context, target.name, f"trained/{target.name}",
            training_block(self.recipe.document, *where), known, target.name,
        )  # fmt: skip
        return self._add(stage)

    def _sweep(self, name: str, model: Source) -> Sweep | None:
        if not self.recipe.is_sweep:
            return None
        assert self.body.evaluate is not None
        assert self.donor is not None
        stage = Sweep(
            self.context, name, self.body.evaluate, {"recipient": model, "donor": self.donor},
            self.points, loss=self.body.choose.retention_loss, policy=self.body.context,
        )  # fmt: skip
        self._add(stage)
        return stage

    def _graft(self, name: str, model: Source, sweep: Sweep | None) -> Stage:
        out = f"grafts/{name}"
        if self.body.method == "apply":
            stage = Apply(
                self.context, name, out, self.body.apply, model, self.points, self._origin(),
                policy=self.body.context, guard=self.base if self.body.apply.guard else None,
                sweep=sweep, target=name,
            )  # fmt: skip
            return self._add(stage)
        adapter = self.points[0].adapter
        models = {"target": model, "adapter": adapter}
        models |= {"base": self.base} if self.base is not None else {}
        models |= {"extended": self.donor} if self.donor is not None else {}
        stand_ins = {"adapter": self.extended} if self.extended is not None else {}
        return self._add(
            Merge(self.context, name, out, self.recipe.merge_block(), models, stand_ins)
        )

    def _recover(self, name: str, model: Source, graft: Source) -> Stage:
        document = recover_block(self.recipe.document)
        models = {GRAFTED: graft, "target": model}
        stage = Recover(
            self.context, name, f"recovered/{name}", document, models, name,
            stand_in=self.extended or model,
        )  # fmt: skip
        return self._add(stage)

    def _add(self, stage: Stage) -> Stage:
        if any(other.out == stage.out for other in self.stages):
            raise InputError(
                f"The name {stage.out.rpartition('/')[2]} belongs to a model of the job itself; "
                "give the target another name."
            )
        self.stages.append(stage)
        return stage


def merge_stages(recipe: MergeJob, context: Context) -> list[Stage]:
    """The stages of a merge recipe: merge, recovery, evaluation with the merged models."""
    graft: Stage = Merge(context, RESULT, f"grafts/{RESULT}", recipe.document, {}, {})
    stages: list[Stage] = [graft]
    result: Stage = graft
    references = [reference.model for reference, _ in recipe.references()]
    before = Given(references[0])
    if (document := recipe.recover) is not None:
        known: dict[str, Source] = {GRAFTED: graft, "target": before}
        result = Recover(
            context, RESULT, f"recovered/{RESULT}", document, known, RESULT, stand_in=before
        )
        stages.append(result)
    compare = Compare(context, RESULT, f"changes/{RESULT}", before, result)
    stages.append(compare)
    report = None
    if (block := recipe.evaluation) is not None:
        inputs = [name for name in references if not is_adapter(name)]
        models: dict[str, Source] = {name_of(model): Given(model) for model in inputs}
        models |= {RESULT: graft} | ({"recovered": result} if result is not graft else {})
        stand_ins: dict[str, Source] = dict.fromkeys((RESULT, "recovered"), before)
        report = Evaluate(context, RESULT, f"reports/{RESULT}", block, models, stand_ins)
        stages.append(report)
    sources: dict[str, Source] = {
        name_of(name): Given(name, "adapter" if is_adapter(name) else "model")
        for name in references
    }
    package = Package(
        context, RESULT, recipe.document.text, graft, result, before, sources, compare, report, None
    )
    return [*stages, package]


def select(stages: list[Stage], name: str, option: str) -> list[int]:
    """The indices of the stages called `name`: one stage's name, or a kind.

    Raises InputError for a name that no stage has.
    """
    selected = [i for i, stage in enumerate(stages) if name in (stage.name, stage.kind)]
    if not selected:
        names = [stage.name for stage in stages]
        close = closest_name(name, [*names, *(stage.kind for stage in stages)])
        hint = f" (did you mean {close}?)" if close else ""
        raise InputError(
            f"{option} {name} is no stage of this job{hint}; its stages are {', '.join(names)}."
        )
    return selected
