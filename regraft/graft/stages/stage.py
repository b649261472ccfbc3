"""A stage: one command on given inputs, which runs again only when they change.

The key of a stage is a hash of the contents of its inputs, its arguments and the version of
its code. A stage whose recorded key is its present one, and whose output is whole, is finished.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import yaml

from regraft.device import pick_device
from regraft.document import Document
from regraft.file_hashes import files_content
from regraft.graft.content import adapter_content, model_content
from regraft.graft.workspace import FinishedStage, Workspace
from regraft.input_files import JsonObject
from regraft.job import job_hash
from regraft.write import write_text

Produces = Literal["model", "adapter", "files"]


@dataclass(frozen=True)
class Context:
    """The settings that all stages of a job share. start_again: do not continue an interrupted
    stage."""

    workspace: Workspace
    device: str
    seed: int
    start_again: bool


@dataclass(frozen=True)
class Given:
    """A model or adapter that the recipe names."""

    location: str
    produces: Produces = "model"

    def content(self) -> str:
        """Hash of its files. Raises CheckpointError for what is no model or adapter."""
        if self.produces == "adapter":
            return adapter_content(self.location)
        return model_content(self.location)


class Rerun(TypedDict):
    """The arguments by which a command runs again in the folder of an earlier run."""

    overwrite: bool
    resume: bool


class Stage(ABC):
    """One stage of a job.

    name: such as 'extract/rank-16'; target: the target to which it belongs, None where all share
    it; path: the folder that it writes.
    """

    kind: ClassVar[str]  # the first part of the name, for --until and --from
    version: ClassVar[int] = 1  # raised when the same inputs and arguments give another output
    produces: Produces = "files"

    def __init__(
        self, context: Context, item: str | None, out: str, target: str | None = None
    ) -> None:
        self.context = context
        self.name = self.kind if item is None else f"{self.kind}/{item}"
        self.out = out
        self.path = context.workspace.folder / out
        self.target = target
        self._memo: FinishedStage | None = None

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, Source]:
        """The inputs of the stage, by their names in its key. A sweep among its `needs` must be
        finished."""

    @property
    @abstractmethod
    def arguments(self) -> JsonObject:
        """Everything else that changes the output: values for JSON."""

    @abstractmethod
    def run(self) -> None:
        """Write the folder. Raises RegraftError."""

    def check(self) -> Mapping[str, Any]:
        """Check all that is known before the inputs are made. Returns the plan: label -> text or
        number. Raises InputError for what `run` would refuse."""
        return {}

    @property
    def files(self) -> list[str | Path]:
        """Files and folders of the user's that the stage reads beside its inputs."""
        return []

    @property
    def location(self) -> str:
        return str(self.path)

    def needs(self) -> Iterator[Stage]:
        """The stages whose output this one reads."""
        for source in self.inputs.values():
            if isinstance(source, Stage):
                yield source

    def given(self) -> Iterator[Given]:
        """The models and adapters of the recipe that the stage may read."""
        for source in self.inputs.values():
            if isinstance(source, Given):
                yield source

    def reads(self) -> list[str]:
        """The locations of the inputs, made or not, for a plan."""
        return list(dict.fromkeys(source.location for source in self.inputs.values()))

    def key(self) -> str | None:
        """The key of the stage; None while an input is not made."""
        contents = {}
        if not all(stage.is_finished() for stage in self.needs()):
            return None
        for label, source in self.inputs.items():
            contents[label] = source.content()
        device = pick_device(self.context.device).type
        return job_hash("graft", self.version, self.kind, contents, self.arguments, device)

    def is_finished(self) -> bool:
        """Whether the output is that of the present inputs and arguments."""
        if self._memo is None:
            record = self.context.workspace.finished(self.name)
            if record is not None and record.out == self.out and record.key == self.key():
                self._memo = record
        return self._memo is not None

    def content(self) -> str:
        """Hash of the output. The stage must be finished."""
        assert self.is_finished(), self.name
        assert self._memo is not None
        return self._memo.content

    def complete(self) -> None:
        """Run the stage and record that it is finished."""
        key = self.key()
        assert key is not None, f"{self.name} is run before its inputs are made"
        self.run()
        self._memo = FinishedStage(key=key, content=self._hash(), out=self.out)
        self.context.workspace.finish(self.name, self._memo)

    def forget(self) -> None:
        """Forget that the stage is finished, so that it runs again."""
        self._memo = None
        self.context.workspace.forget(self.name)

    @property
    def options(self) -> Rerun:
        """Arguments of every command: replace an earlier output, continue an interrupted run."""
        return {"overwrite": True, "resume": not self.context.start_again}

    def _hash(self) -> str:
        if self.produces == "model":
            return model_content(self.location)
        if self.produces == "adapter":
            return adapter_content(self.location)
        return files_content(
            (path.relative_to(self.path).as_posix(), path)
            for path in self.path.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )


Source = Given | Stage


def available(source: Source) -> str | None:
    """The location of a source; None while it is not made."""
    if isinstance(source, Given) or source.is_finished():
        return source.location
    return None


def locations(
    models: Mapping[str, Source], stand_ins: Mapping[str, Source] | None = None
) -> dict[str, str] | None:
    """The location of every model, or of its stand-in while the model is not made; None while one
    has neither."""
    result = {}
    for name, model in models.items():
        location = available(model)
        if location is None and stand_ins is not None and name in stand_ins:
            location = available(stand_ins[name])
        if location is None:
            return None
        result[name] = location
    return result


def write_recipe(path: Path, recipe: Document) -> None:
    """Write the recipe that a stage's command runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(recipe.value, sort_keys=False, allow_unicode=True))
