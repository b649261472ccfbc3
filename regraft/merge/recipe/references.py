"""References to models in a recipe: `path@revision+adapter@revision`, or mergekit's mapping."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from regraft.errors import short_repr


@dataclass(frozen=True)
class ModelRef:
    """A model, optionally with an adapter; both are folders or Hub ids."""

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    def __str__(self) -> str:
        return self.model + (f"+{self.lora}" if self.adapter else "")

    @property
    def model(self) -> str:
        """The model's name without the adapter, for `Checkpoint.open`."""
        return f"{self.path}@{self.revision}" if self.revision else self.path

    @property
    def lora(self) -> str | None:
        """The adapter's name, for `Adapter.open`."""
        if self.adapter and self.adapter_revision:
            return f"{self.adapter}@{self.adapter_revision}"
        return self.adapter


def parse_reference(value: Any) -> ModelRef:
    """Parse a string or a mapping of a recipe. Raises ValueError."""
    if isinstance(value, ModelRef):
        return value
    if isinstance(value, str):
        if one := _path(value):
            return ModelRef(*one)
        name, _, added = value.partition("+")
        if (one := _path(name)) and (other := _path(added)):
            return ModelRef(*one, *other)
    if isinstance(value, dict) and set(value) <= {"model", "lora", "override_architecture"}:
        model, adapter = _from_mapping(value.get("model")), _from_mapping(value.get("lora"))
        if value.get("override_architecture") is not None:
            raise ValueError("override_architecture is not supported; correct the config instead")
        if model:
            return ModelRef(*model, *(adapter or (None, None)))
    raise ValueError(
        f"{short_repr(value)} is not a model such as org/name, path@rev or model+adapter"
    )


def _path(text: str) -> tuple[str, str | None] | None:
    """(path, revision) of one side of a '+'; None for anything else."""
    if text and _exists(text):
        return text, None
    path, at, revision = text.partition("@")
    if not path.strip() or "+" in text or "@" in revision or bool(at) != bool(revision):
        return None
    return path, revision or None


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError):  # a name too long for a file; ~ of an unknown user
        return False


def _from_mapping(value: Any) -> tuple[str, str | None] | None:
    if isinstance(value, str):
        return _path(value)
    if isinstance(value, dict) and set(value) <= {"path", "revision"}:
        path, revision = value.get("path"), value.get("revision")
        if isinstance(path, str) and path and (revision is None or isinstance(revision, str)):
            return path, revision
    return None


Reference = Annotated[
    ModelRef,
    BeforeValidator(parse_reference),
    PlainSerializer(str),
    WithJsonSchema({"type": ["string", "object"], "description": "path@revision+adapter@revision"}),
]
