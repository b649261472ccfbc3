"""Comparison of two checkpoints: relation, contexts, exact figures of their difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from regraft import progress
from regraft.adapters import lineage
from regraft.adapters.extract.deltas import Delta, compare, deltas
from regraft.adapters.extract.select import Module, shared_shape
from regraft.adapters.inspect.describe_checkpoint import context_of
from regraft.adapters.inspect.figures import mean_and_range
from regraft.checkpoint.hf.roles import Role, tensor_roles
from regraft.checkpoint.read.header import FLOAT_DTYPES
from regraft.checkpoint.read.source import Checkpoint
from regraft.lowrank.effective_rank import LEADING, effective_rank
from regraft.lowrank.noise import noise_floor
from regraft.lowrank.svd import truncated_svd
from regraft.records import to_json

Fact = dict[str, Any]


def compare_checkpoints(b: Checkpoint, e: Checkpoint, device: torch.device) -> dict[str, Any]:
    """Return relation, contexts, and exact figures of e - b per tensor, role, layer and leaf.

    Every shared weight is read once. `effective_rank` and `above_noise` are those of the delta,
    for matrices only; `above_noise` is the share of ||D||^2 that rounding to the
    stored dtypes cannot explain.
    """
    role_of = tensor_roles(b.config, b.tensors)
    relation = lineage.relate(lineage.sketch(b), lineage.sketch(e), role_of)
    names, incomparable = _comparable(b, e, role_of)
    facts = _measure(b, e, names, role_of, device)
    return {
        "kind": "checkpoints",
        "first": _identity(b),
        "second": _identity(e),
        "relation": to_json(relation),
        "context": _contexts(b, e),
        "total": _total(facts.values()),
        "roles": _grouped(facts, lambda fact: fact["role"]),
        "layers": _grouped(facts, lambda fact: fact["layer"]),
        "leaves": _grouped(facts, lambda fact: fact["leaf"] if "effective_rank" in fact else None),
        "only_in_first": [name for name in b.tensors if name not in e.tensors],
        "only_in_second": [name for name in e.tensors if name not in b.tensors],
        "not_comparable": incomparable,
        "rows_added": {
            name: e.tensors[name].shape[0] - b.tensors[name].shape[0]
            for name in names
            if e.tensors[name].shape != b.tensors[name].shape
        },
        "definitions": {
            "relative_delta": "||second - first|| / ||first||, Frobenius norms over shared entries",
            "cosine": "<first, second> / (||first|| ||second||)",
            "effective_rank": "of D = second - first: ||D||_F^4 / ||D'D||_F^2",
            "above_noise": "share of ||D||_F^2 that rounding to the stored dtypes cannot explain",
        },
        "tensors": facts,
    }


def _identity(checkpoint: Checkpoint) -> Fact:
    return {
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "model_type": checkpoint.config.get("model_type"),
        "bytes": checkpoint.total_bytes,
    }


def _contexts(b: Checkpoint, e: Checkpoint) -> Fact:
    (first, first_text), (second, second_text) = context_of(b), context_of(e)
    return {
        "first": first.to_json() if first else None,
        "second": second.to_json() if second else None,
        "first_text": first_text,
        "second_text": second_text,
        "same": first == second,
    }


def _comparable(
    b: Checkpoint, e: Checkpoint, role_of: Mapping[str, Role]
) -> tuple[list[str], dict[str, str]]:
    """Return the tensors whose entries can be subtracted, and {other shared tensor: reason}."""
    names, incomparable = [], {}
    for name, info in b.tensors.items():
        other = e.tensors.get(name)
        if other is None:
            continue
        rows_only = (
            role_of[name].kind in ("embedding", "head") and info.shape[1:] == other.shape[1:]
        )
        if not (info.shape == other.shape or rows_only):
            incomparable[name] = f"{list(info.shape)} and {list(other.shape)}"
        elif info.dtype not in FLOAT_DTYPES or other.dtype not in FLOAT_DTYPES:
            incomparable[name] = f"{info.dtype} and {other.dtype}"
        else:
            names.append(name)
    return names, incomparable


def _measure(
    b: Checkpoint,
    e: Checkpoint,
    names: list[str],
    role_of: Mapping[str, Role],
    device: torch.device,
) -> dict[str, Fact]:
    matrices = []
    for name in names:
        role, shape = role_of[name], shared_shape(b, e, name)
        if role.kind in ("projection", "embedding", "head") and len(shape) == 2 and min(shape):
            matrices.append(Module(role.module, name, "linear", (shape[0], shape[1])))
    others = sorted(set(names) - {module.tensor for module in matrices})
    facts: dict[str, Fact] = {}

    def add(name: str, shape: tuple[int, ...], sums: list[float]) -> Fact:
        role = role_of[name]
        dd, bb, bd = sums
        ee = max(bb + 2 * bd + dd, 0.0)
        facts[name] = {
            "role": role.kind, "layer": role.layer, "leaf": role.leaf, "shape": list(shape),
            **_figures(dd, bb, ee, bb + bd),
        }  # fmt: skip
        return facts[name]

    work = sum(math.prod(b.tensors[name].shape) for name in names)
    with progress.bar("Comparing", max(1, work)) as bar:
        for module, delta in deltas(b, e, matrices, device):
            sums = [delta.squared_norm, delta.squared_base, delta.dot]
            add(module.tensor, module.shape, sums).update(_spectral(delta))
            bar.advance(math.prod(module.shape), text=module.name)
        for name in others:
            shape = shared_shape(b, e, name)
            add(name, shape, compare(b, e, name))
            bar.advance(math.prod(shape), text=name)
    return {name: facts[name] for name in names}


def _figures(dd: float, bb: float, ee: float, be: float) -> Fact:
    """From ||d||^2, ||b||^2, ||e||^2 and <b, e>. None where a quotient is undefined."""
    return {
        "delta_norm": math.sqrt(dd),
        "norm": math.sqrt(bb),
        "other_norm": math.sqrt(ee),
        "relative_delta": math.sqrt(dd / bb) if bb else (None if dd else 0.0),
        "cosine": max(-1.0, min(1.0, be / math.sqrt(bb * ee))) if bb * ee else None,
        "product": be,
    }


def _spectral(delta: Delta) -> Fact:
    """Effective rank, largest singular value and share above the rounding noise of one delta."""
    squared = delta.squared_norm
    if squared == 0:
        return {"effective_rank": 0.0, "spectral_norm": 0.0, "above_noise": None}
    svd = truncated_svd(delta.matrix, LEADING, half=delta.half, squared_norm=squared, certify=False)
    m, n = delta.matrix.shape
    floor = noise_floor(svd.S, squared, (m, n), delta.noise)
    return {
        "effective_rank": effective_rank(delta.matrix, svd.Vt, squared),
        "spectral_norm": float(svd.S[0]),
        "above_noise": max(0.0, 1 - m * n * floor.variance / squared),
    }


def _grouped(facts: Mapping[str, Fact], key: Callable[[Fact], str | int | None]) -> dict[str, Fact]:
    groups: dict[str | int, list[Fact]] = {}
    for fact in facts.values():
        if (value := key(fact)) is not None:
            groups.setdefault(value, []).append(fact)
    order = sorted(groups, key=lambda value: value if isinstance(value, int) else 0)
    return {str(value): _total(groups[value]) for value in order}


def _total(members: Iterable[Fact]) -> Fact:
    """Figures of several tensors, as of their concatenation."""
    facts = list(members)
    dd, bb, ee = (
        sum(fact[key] ** 2 for fact in facts) for key in ("delta_norm", "norm", "other_norm")
    )
    matrices = [f for f in facts if f.get("effective_rank")]
    measured = [f for f in matrices if f["above_noise"] is not None]
    energy = sum(f["delta_norm"] ** 2 for f in measured)
    return {
        "tensors": len(facts),
        "changed": sum(fact["delta_norm"] > 0 for fact in facts),
        "parameters": sum(math.prod(fact["shape"]) for fact in facts),
        **_figures(dd, bb, ee, sum(fact["product"] for fact in facts)),
        **(
            mean_and_range("effective_rank", (f["effective_rank"] for f in matrices))
            if matrices
            else {}
        ),
        "above_noise": sum(f["above_noise"] * f["delta_norm"] ** 2 for f in measured) / energy
        if energy
        else None,
    }
