"""Records that the records of several commands share: a model, its context, a relation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

SCHEMA_VERSION = 2  # increased whenever a record of an earlier version can no longer be read
Plain = str | int | float | bool | None  # an argument of a command


RopeParameters = dict[str, Any]
"""transformers 5's rope_parameters: rope_type, rope_theta and what the family has (factor,
original_max_position_embeddings, long_factor ...), or such a mapping for each layer type."""


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """A model that a command read. fingerprint: see `Checkpoint.fingerprint`."""

    name: str
    revision: str | None
    fingerprint: str
    model_type: str | None = None


@dataclass(frozen=True, kw_only=True)
class ContextRecord:
    """A `rope.ContextSpec` as JSON."""

    rope_parameters: RopeParameters
    max_position_embeddings: int
    original_max_position_embeddings: int | None


@dataclass(frozen=True, kw_only=True)
class DistanceRecord:
    """||a - b|| / ||a|| and the cosine between sampled weights a and b of one role's tensors."""

    distance: float
    cosine: float
    tensors: int


@dataclass(frozen=True, kw_only=True)
class RelationRecord:
    """How two checkpoints are related, by the role of their tensors."""

    verdict: Literal["same", "relative", "stranger"]
    roles: dict[str, DistanceRecord]
    missing: int


@dataclass(frozen=True, kw_only=True)
class AdapterFiles:
    """An adapter that a command read: the SHA-256 of the files that decide the change."""

    name: str
    sha256: dict[str, str]
