"""How the inputs' changes get on with each other, and what the result keeps of each.

A change is an input minus the base; in a recipe without one, minus the first input of its slice.
evenly spaced rows of every tensor, at least 64 of a matrix, so they are estimates, to about one
percent; the norms of the merged change and of what storage took from it are exact.

relative change   ||d_i|| / ||reference||
cosine            <d_i, d_j> / ||d_i|| ||d_j||
sign conflict     of the entries that both changes move, the share they move apart
overlap           mean squared cosine between the spaces of their 8 leading right singular vectors:
                  1 the same space, about 8 / columns for strangers
kept              <d_i, m> / <d_i, d_i>, m the merged change: 1 when all of d_i is in the result
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from regraft.merge.plan import Output, Plan
from regraft.merge.stream import Tally

MOST = 8  # inputs that are compared pair by pair
_DIRECTIONS = 8


def measure(output: Output, tally: Tally) -> dict[str, Any]:
    """What `report` needs of one tensor, as JSON: sums over its sampled rows."""
    chosen = [i for i in range(len(output.inputs)) if output.base or i != output.anchor][:MOST]
    if not chosen or not tally.samples:
        return {}
    parts = [part.flatten(1) if part.ndim > 1 else part for part in tally.samples]
    result, reference = parts.pop(), parts.pop()
    deltas = [parts[i] - reference for i in chosen]
    merged = result - reference
    flat = torch.stack([*(d.flatten() for d in deltas), merged.flatten()]).double()
    gram = (flat @ flat.T).tolist()
    spaces = [_space(delta) for delta in deltas]
    signs, overlaps = [], []
    for i, j in combinations(range(len(deltas)), 2):
        product = deltas[i] * deltas[j]
        signs.append([int((product < 0).sum()), int((product != 0).sum())])
        one, other = spaces[i], spaces[j]
        overlaps.append(
            float((one @ other.T).square().sum()) / len(one)
            if one is not None and other is not None and len(one) == len(other)
            else None
        )
    return {
        "names": [str(output.inputs[i][0]) for i in chosen],
        "gram": gram,
        "reference": float(torch.linalg.vector_norm(reference, dtype=torch.float64)) ** 2,
        "signs": signs,
        "overlaps": overlaps,
    }


def _space(delta: Tensor) -> Tensor | None:
    """Orthonormal rows spanning the leading right singular vectors of the sampled rows."""
    if delta.ndim < 2 or min(delta.shape) < 4 * _DIRECTIONS:
        return None
    values, vectors = torch.linalg.eigh(delta @ delta.T)
    lead = values[-_DIRECTIONS:]
    if not float(lead[0]) > 1e-10 * float(lead[-1]):
        return None
    return (vectors[:, -_DIRECTIONS:] / lead.sqrt()).T @ delta


def report(plan: Plan, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The record's `totals`, `roles` and `tensors`, each with the figures of this module."""
    roles: dict[str, list[Mapping[str, Any]]] = {}
    tensors = {}
    for output in plan.outputs:
        fact = facts[output.name]
        roles.setdefault(role(output), []).append(fact)
        tensors[output.name] = {
            "role": role(output),
            "layer": output.layer,
            "shape": list(output.shape),
            "dtype": str(output.dtype).removeprefix("torch."),
            "base": _provenance(output.base),
            "inputs": [_provenance(source) for source in output.inputs],
            "parameters": output.params,
            **figures([fact]),
        }
    return {
        "totals": {"tensors": len(tensors), **figures(facts[out.name] for out in plan.outputs)},
        "roles": {
            name: {"tensors": len(members), **figures(members)} for name, members in roles.items()
        },
        "tensors": tensors,
    }


def figures(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of some tensors taken together."""
    facts = list(facts)
    change, loss = (sum(f[key] for f in facts) for key in ("squared_change", "squared_loss"))
    result: dict[str, Any] = {
        "change_norm": math.sqrt(change),
        "lost_to_storage": math.sqrt(loss / change) if change else 0.0,
    }
    own: dict[str, list[float]] = {}  # <d, d>, <d, m>, ||reference||^2
    pairs: dict[str, list[float]] = {}  # <d, e>, <d, d>, <e, e>, apart, both, overlap, tensors
    for fact in facts:
        if "gram" not in fact:
            continue
        gram, names = fact["gram"], fact["names"]
        for i, name in enumerate(names):
            _add(own, name, [gram[i][i], gram[i][-1], fact["reference"]])
        for k, (i, j) in enumerate(combinations(range(len(names)), 2)):
            overlap = fact["overlaps"][k]
            numbers = [gram[i][j], gram[i][i], gram[j][j], *fact["signs"][k]]
            measured = [0.0, 0.0] if overlap is None else [overlap, 1.0]
            _add(pairs, f"{names[i]} | {names[j]}", [*numbers, *measured])
    if not own:
        return result
    result["relative_change"] = {n: math.sqrt(_over(dd, ww)) for n, (dd, _, ww) in own.items()}
    result["kept"] = {n: _over(dm, dd) for n, (dd, dm, _) in own.items()}
    if pairs:
        result["cosine"] = {
            n: _over(de, math.sqrt(dd * ee)) for n, (de, dd, ee, *_) in pairs.items()
        }
        result["sign_conflict"] = {n: _over(p[3], p[4]) for n, p in pairs.items()}
        result["overlap"] = {n: p[5] / p[6] if p[6] else None for n, p in pairs.items()}
    return result


def role(output: Output) -> str:
    """The row of the report that a tensor belongs to: a projection's own name, else its kind."""
    return output.leaf if output.kind == "projection" else output.kind


def _add(sums: dict[str, list[float]], name: str, numbers: list[float]) -> None:
    before = sums.setdefault(name, [0.0] * len(numbers))
    sums[name] = [a + b for a, b in zip(before, numbers, strict=True)]


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def _provenance(source: Any) -> dict[str, str] | None:
    return None if source is None else {"model": str(source[0]), "tensor": source[1]}
