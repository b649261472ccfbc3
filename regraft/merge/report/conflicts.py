"""How far the changes of the inputs agree, and how much of each the result retains.

A change is an input minus the base, or without a base minus the first input of its slice. The
figures are estimates, to about one percent, from evenly spaced rows of every tensor (at least 64 of
a matrix); the norms of the merged change and of what rounding takes from it are exact.

relative change   ||d_i|| / ||reference||
cosine            <d_i, d_j> / ||d_i|| ||d_j||
sign conflict     of the entries that both changes move, the share they move in opposite directions
overlap           mean squared cosine between the spaces of their 8 leading right singular vectors:
                  1 the same space, about 8 / columns for unrelated changes
retained          <d_i, m> / <d_i, d_i>, m the merged change: 1 when all of d_i is in the result

Slices may have different inputs, so a tensor, a role or the whole merge has figures for some inputs
and pairs only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from regraft.checkpoint.dtypes import dtype_name
from regraft.merge.inputs.match import StoredTensor
from regraft.merge.native.plan import Output
from regraft.merge.native.stream import Tally
from regraft.records import (
    ChangeFigures,
    MergeFigures,
    MergeTotals,
    PairFigures,
    TensorMerge,
    TensorSource,
)

_MAX_COMPARED = 8  # inputs that are compared pair by pair
_DIRECTIONS = 8


@dataclass(frozen=True, kw_only=True)
class TensorSums:
    """Figures of one output tensor, as sums that can be added over tensors.

    squared_change, squared_loss: ||merged - reference||^2 and ||merged - stored||^2 of all rows.
    The others are of the sampled rows. gram: inner products of the changes of `names` and, last,
    of the merged change. signs, overlaps: of each pair of `names`, in the order of `combinations`;
    `signs` has the numbers of entries moved in opposite directions and of entries that both move.
    """

    squared_change: float
    squared_loss: float
    names: list[str] = field(default_factory=list)
    squared_reference: float = 0.0
    gram: list[list[float]] = field(default_factory=list)
    signs: list[list[int]] = field(default_factory=list)
    overlaps: list[float | None] = field(default_factory=list)


def measure(output: Output, tally: Tally) -> TensorSums:
    """The sums of one tensor, from its sampled rows."""
    change, loss = tally.squared_change, tally.squared_loss
    compared = [i for i in range(len(output.inputs)) if output.base or i != output.anchor]
    compared = compared[:_MAX_COMPARED]
    if not compared or not tally.samples:
        return TensorSums(squared_change=change, squared_loss=loss)
    parts = [part.flatten(1) if part.ndim > 1 else part for part in tally.samples]
    result, reference = parts.pop(), parts.pop()
    deltas = [parts[i] - reference for i in compared]
    merged = result - reference
    flat = torch.stack([*(d.flatten() for d in deltas), merged.flatten()]).double()
    spaces = [_space(delta) for delta in deltas]
    signs, overlaps = [], []
    for i, j in combinations(range(len(deltas)), 2):
        product = deltas[i] * deltas[j]
        signs.append([int((product < 0).sum()), int((product != 0).sum())])
        overlaps.append(_overlap(spaces[i], spaces[j]))
    return TensorSums(
        squared_change=change,
        squared_loss=loss,
        names=[str(output.inputs[i][0]) for i in compared],
        squared_reference=float(torch.linalg.vector_norm(reference, dtype=torch.float64)) ** 2,
        gram=(flat @ flat.T).tolist(),
        signs=signs,
        overlaps=overlaps,
    )


def _space(delta: Tensor) -> Tensor | None:
    """Orthonormal rows spanning the leading right singular vectors of the sampled rows."""
    if delta.ndim < 2 or min(delta.shape) < 4 * _DIRECTIONS:
        return None
    values, vectors = torch.linalg.eigh(delta @ delta.T)
    lead = values[-_DIRECTIONS:]
    if not float(lead[0]) > 1e-10 * float(lead[-1]):
        return None
    return (vectors[:, -_DIRECTIONS:] / lead.sqrt()).T @ delta


def _overlap(one: Tensor | None, other: Tensor | None) -> float | None:
    if one is None or other is None or len(one) != len(other):
        return None
    return float((one @ other.T).square().sum()) / len(one)


def combine(tensors: Iterable[TensorSums]) -> MergeFigures:
    """The figures of several tensors as if they were one."""
    change = loss = 0.0
    changes: dict[str, list[float]] = {}  # <d, d>, <d, m>, ||reference||^2
    # <d, e>, <d, d>, <e, e>, opposite, both, overlap, tensors
    pairs: dict[tuple[str, str], list[float]] = {}
    for sums in tensors:
        change += sums.squared_change
        loss += sums.squared_loss
        gram, names = sums.gram, sums.names
        for i, name in enumerate(names):
            _add(changes, name, [gram[i][i], gram[i][-1], sums.squared_reference])
        for k, (i, j) in enumerate(combinations(range(len(names)), 2)):
            if (names[j], names[i]) in pairs:  # another slice lists them in the other order
                i, j = j, i
            overlap = sums.overlaps[k]
            numbers = [gram[i][j], gram[i][i], gram[j][j], *sums.signs[k]]
            measured = [0.0, 0.0] if overlap is None else [overlap, 1.0]
            _add(pairs, (names[i], names[j]), [*numbers, *measured])
    return MergeFigures(
        change_norm=math.sqrt(change),
        lost_to_storage=math.sqrt(loss / change) if change else 0.0,
        changes={
            name: ChangeFigures(relative=math.sqrt(_over(dd, ww)), retained=_over(dm, dd))
            for name, (dd, dm, ww) in changes.items()
        },
        pairs=[
            PairFigures(
                models=names,
                cosine=_over(de, math.sqrt(dd * ee)),
                sign_conflict=_over(opposite, both),
                overlap=overlap / count if count else None,
            )
            for names, (de, dd, ee, opposite, both, overlap, count) in pairs.items()
        ],
    )


@dataclass(frozen=True)
class Report:
    """The record's figures: of all tensors, by role and by tensor."""

    totals: MergeTotals
    roles: dict[str, MergeTotals]
    tensors: dict[str, TensorMerge]


def report(outputs: Iterable[Output], sums: Mapping[str, TensorSums]) -> Report:
    """The figures of the merged tensors from the sums of each."""
    roles: dict[str, list[TensorSums]] = {}
    tensors: dict[str, TensorMerge] = {}
    for output in outputs:
        own = sums[output.name]
        roles.setdefault(role(output), []).append(own)
        tensors[output.name] = TensorMerge(
            role=role(output),
            layer=output.layer,
            shape=list(output.shape),
            dtype=dtype_name(output.dtype),
            base=None if output.base is None else _source(output.base),
            inputs=[_source(stored) for stored in output.inputs],
            parameters=output.params,
            figures=combine([own]),
        )
    return Report(
        totals=MergeTotals(tensors=len(tensors), figures=combine(sums[name] for name in tensors)),
        roles={
            name: MergeTotals(tensors=len(members), figures=combine(members))
            for name, members in roles.items()
        },
        tensors=tensors,
    )


def role(output: Output) -> str:
    """The row of the report that a tensor counts in: the name of its projection, else its kind."""
    return output.leaf if output.kind == "projection" else output.kind


def _source(stored: StoredTensor) -> TensorSource:
    return TensorSource(model=str(stored[0]), tensor=stored[1])


def _add(sums: dict[Any, list[float]], key: Any, numbers: list[float]) -> None:
    before = sums.setdefault(key, [0.0] * len(numbers))
    sums[key] = [a + b for a, b in zip(before, numbers, strict=True)]


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
