"""Whether two checkpoints are relatives, and their distance, from 1024 sampled weights per tensor.

A fine-tune moves weights by a few percent, so the cosine between relatives' weights stays close to
1; checkpoints trained from different seeds have cosine 0. Samples estimate both to about
1/sqrt(samples), which over a whole role is far finer than the gap. The samples of a base are stored
with its adapter, so that a target can be compared with a base that is not available.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from regraft.checkpoint.hf.roles import Role
from regraft.checkpoint.read.sample import sample_blocks
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError
from regraft.records import DistanceRecord, RelationRecord

STRANGER_BELOW = 0.5  # cosine of the projections' weights
Sketch = Mapping[str, Tensor]


def describe(relation: RelationRecord) -> str:
    """'projection 3.1% away (cosine 0.9995), norm 0.4% away (cosine 1.0000)'."""
    return ", ".join(
        f"{role} {d.distance:.1%} away (cosine {d.cosine:.4f})"
        for role, d in relation.roles.items()
    )


def sketch(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Sampled weights of every floating-point tensor, in the stored dtype.

    Raises CheckpointError where a sample holds NaN or infinity.
    """
    samples = {
        name: checkpoint.sample(name)
        for name, info in checkpoint.tensors.items()
        if info.dtype.is_floating_point
    }
    for name, values in samples.items():
        if not torch.isfinite(values.float()).all():
            raise CheckpointError(
                f"Tensor '{name}' of {checkpoint.name} holds NaN or infinite numbers; give a sound "
                "checkpoint."
            )
    return samples


def relate(first: Sketch, second: Sketch, roles: Mapping[str, Role]) -> RelationRecord:
    """Distance and cosine of two sketches by role, and a verdict.

    Tensors of different sizes count as missing: added tokens change the size of an embedding, and
    then its samples are other elements.
    """
    sums: dict[str, list[float]] = {}
    missing = 0
    for name in sorted(first):
        a, b = first[name], second.get(name)
        if b is None or a.numel() != b.numel():
            missing += 1
            continue
        x, y = a.to(torch.float64), b.to(torch.float64)
        role = roles[name].kind if name in roles else "other"
        total = sums.setdefault(role, [0.0, 0.0, 0.0, 0.0, 0.0])
        for i, value in enumerate((x @ x, y @ y, x @ y, (x - y) @ (x - y))):
            total[i] += float(value)
        total[4] += 1
    distances = {
        role: DistanceRecord(
            distance=math.sqrt(dd / (aa or bb)) if dd else 0.0,
            cosine=ab / math.sqrt(aa * bb) if aa and bb else (1.0 if aa == bb else 0.0),
            tensors=int(count),
        )
        for role, (aa, bb, ab, dd, count) in sorted(sums.items(), key=_role_order)
    }
    return RelationRecord(verdict=_verdict(distances, missing), roles=distances, missing=missing)


def present(first: Sketch, second: Sketch, changes: Iterable[tuple[str, Tensor, Tensor]]) -> float:
    """The share of a change that the second model has and the first has not.

    <second - first, change> / ||change||^2 over the sampled weights: 0 for a model without the
    change, 1 for one with it. changes: (tensor name, B (m, r), A (r, n)), for tensors of m n
    elements; others are left out.
    """
    dot = squared = 0.0
    for name, b, a in changes:
        x, y = first.get(name), second.get(name)
        columns = a.shape[1]
        at = torch.cat([torch.arange(*block) for block in sample_blocks(b.shape[0] * columns)])
        if x is None or y is None or not x.numel() == y.numel() == at.numel():
            continue
        change = (b[at // columns] * a[:, at % columns].T).sum(1).double()
        dot += float((y.double() - x.double()) @ change)
        squared += float(change @ change)
    return dot / squared if squared else 0.0


def _role_order(item: tuple[str, list[float]]) -> int:
    order = ("projection", "embedding", "head", "norm", "bias", "other")
    return order.index(item[0]) if item[0] in order else len(order)


def _verdict(
    distances: Mapping[str, DistanceRecord], missing: int
) -> Literal["same", "relative", "stranger"]:
    if not distances:
        return "stranger"
    if not missing and all(d.distance == 0 for d in distances.values()):
        return "same"
    core = distances.get("projection") or next(iter(distances.values()))
    return "relative" if core.cosine >= STRANGER_BELOW else "stranger"
