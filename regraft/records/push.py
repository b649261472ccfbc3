"""`PushRecord`: what `regraft push` sent, or in a dry run would send."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from regraft.records.common import SCHEMA_VERSION, Plain


@dataclass(frozen=True, kw_only=True)
class PushedFile:
    """A file of the commit."""

    name: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class PushRecord:
    """The upload of an output to a Hub repository. commit: None in a dry run."""

    repository: str
    url: str
    private: bool
    files: list[PushedFile]
    commit: str | None = None
    plan: dict[str, Plain] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    kind: Literal["push"] = "push"
    schema_version: int = SCHEMA_VERSION
