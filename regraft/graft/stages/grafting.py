"""Stages that move weights: extraction of adapters and their application."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract.extract import extract_lora
from regraft.data.calibration import text_of_path
from regraft.data.sources import files as source_files
from regraft.file_hashes import paths_content
from regraft.graft.check import check_future_graft
from regraft.graft.choose import point_label
from regraft.graft.schema import Apply as ApplyBlock
from regraft.graft.schema import Extract as ExtractBlock
from regraft.graft.stages.stage import (
    Context,
    Given,
    Produces,
    Source,
    Stage,
    available,
)
from regraft.input_files import JsonObject


@dataclass(frozen=True)
class Point:
    """One way to make a graft. rank: as in the recipe, None where the adapter is given."""

    adapter: Source
    scale: float
    rank: str | None

    @property
    def label(self) -> str:
        return point_label(self.rank, self.scale)


@dataclass(frozen=True)
class Origin:
    """The models that an adapter is extracted from."""

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
    def files(self) -> list[str | Path]:
        return [] if self.block.calibrate is None else [self.block.calibrate]

    @property
    def arguments(self) -> JsonObject:
        text = {"text": paths_content(self.files)} if self.files else {}
        return {**self._arguments(), **text}

    def _arguments(self) -> JsonObject:
        block = self.block.model_dump(
            exclude={key for key, value in self.block if "calibrate" in key and value is None}
        )
        return {**block, "rank": self.rank, "seed": self.context.seed}

    def run(self) -> None:
        extract_lora(
            self.base.location, self.extended.location, self.path,
            device=self.context.device, **self._arguments(), **self.options,
        )  # fmt: skip

    def check(self) -> Mapping[str, Any]:
        if self.block.calibrate is not None:
            source_files(text_of_path(self.block.calibrate))
        base, extended = available(self.base), available(self.extended)
        if base is None or extended is None:
            return {}
        record = extract_lora(
            base, extended, self.path, device=self.context.device, dry_run=True, overwrite=True,
            **self._arguments(),
        )  # fmt: skip
        return record.plan or {}


class Apply(Stage):
    """`regraft apply` of a point, or of the one that a sweep chooses. origin: of the adapter;
    policy: the output's context; guard: see `apply_lora`."""

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
        guard: Source | None = None,
        sweep: Chooser | None = None,
        target: str | None = None,
    ) -> None:
        super().__init__(context, item, out, target)
        self.block, self.model, self.points, self.origin = block, model, points, origin
        self.policy, self.sweep = policy, sweep
        self.guard = guard

    @property
    def point(self) -> Point:
        """The point to apply; a sweep must be finished."""
        if self.sweep is None:
            return self.points[0]
        return self.sweep.chosen()

    @property
    def inputs(self) -> Mapping[str, Source]:
        guard = {} if self.guard is None else {"guard": self.guard}
        return {"adapter": self.point.adapter, "model": self.model, **guard}

    def needs(self) -> Iterator[Stage]:
        if self.sweep is not None:
            yield self.sweep
            if not self.sweep.is_finished():
                return
        yield from super().needs()

    def given(self) -> Iterator[Given]:
        sources = [self.model, self.guard, *(point.adapter for point in self.points)]
        yield from (source for source in sources if isinstance(source, Given))

    def reads(self) -> list[str]:
        if self.sweep is not None and not self.sweep.is_finished():
            return ["the chosen adapter", self.model.location]
        return super().reads()

    @property
    def arguments(self) -> JsonObject:
        return {**self._options(), "scale": self.point.scale, "context": self.policy}

    def _options(self) -> JsonObject:
        return self.block.model_dump(exclude={"guard"})

    def run(self) -> None:
        apply_lora(
            self.point.adapter.location, self.model.location, self.path,
            device=self.context.device, guard=self._guard, **self.arguments, **self.options,
        )  # fmt: skip

    @property
    def _guard(self) -> str | None:
        return None if self.guard is None else self.guard.location

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
                guard=self._guard, device=self.context.device, dry_run=True, overwrite=True,
                **self._options(),
            )  # fmt: skip
            return record.plan or {}
        base = available(self.origin.base) if self.origin.base is not None else None
        extended = available(self.origin.extended) if self.origin.extended is not None else None
        if base is not None and extended is not None:
            return check_future_graft(base, extended, model, self.policy, force=self.block.force)
        return {}
