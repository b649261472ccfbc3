"""The change of the tensors that are not factorised: norms, biases, embedding and head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from regraft import progress
from regraft.adapters.extract.deltas import compare
from regraft.checkpoint.hf.roles import Role
from regraft.checkpoint.read.source import Checkpoint


@dataclass(frozen=True, kw_only=True)
class RestChange:
    """The change of one tensor that is not factorised. rows_not_shared: rows that the extended
    model has more than the base; negative if fewer."""

    role: str
    delta_norm: float
    relative_delta: float | None
    rows_not_shared: int


def measure_rest(
    base: Checkpoint, extended: Checkpoint, names: list[str], roles: Mapping[str, Role]
) -> dict[str, RestChange]:
    """The change of every tensor that is not factorised."""
    rest: dict[str, RestChange] = {}
    with progress.bar("Measuring the rest", max(1, len(names))) as bar:
        for name in names:
            squared_delta, squared_base = compare(base, extended, name)[:2]
            rows, own = extended.tensors[name].shape[:1], base.tensors[name].shape[:1]
            rest[name] = RestChange(
                role=roles[name].kind,
                delta_norm=math.sqrt(squared_delta),
                relative_delta=math.sqrt(squared_delta / squared_base) if squared_base else None,
                rows_not_shared=rows[0] - own[0] if rows != own else 0,
            )
            bar.advance()
    return rest
