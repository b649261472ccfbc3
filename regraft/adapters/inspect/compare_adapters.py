"""Comparison of an adapter with a checkpoint or with another adapter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from regraft import progress
from regraft.adapters import lineage
from regraft.adapters.apply.check import check_graft
from regraft.adapters.inspect.describe_checkpoint import context_of
from regraft.adapters.inspect.figures import Factors, squared_product
from regraft.adapters.reader import Adapter
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import InputError
from regraft.records import to_json

_LEADING = 8  # singular vectors whose spans are compared
Fact = dict[str, Any]


def compare_adapter_with_checkpoint(adapter: Adapter, target: Checkpoint) -> dict[str, Any]:
    """Return what `regraft apply` would do with the two, and the reasons why it would refuse."""
    verdict, refusals, fits = None, [], True
    try:
        verdict = check_graft(adapter, target)
        refusals = [str(refusal.error) for refusal in verdict.refusals]
    except InputError as error:
        refusals, fits = [str(error)], False
    contexts = adapter.context
    output = verdict.context if verdict else None
    return {
        "kind": "checkpoint and adapter",
        "adapter": adapter.name,
        "checkpoint": target.name,
        "fits": fits,
        "modules": len(adapter.modules),
        "changed_tensors": len(verdict.match.changes) if verdict else None,
        "tensors": len(target.tensors),
        "relation": to_json(verdict.relation) if verdict else None,
        "base": to_json(verdict.base) if verdict else None,
        "already_present": verdict.already_present if verdict else None,
        "context": {
            "checkpoint": context_of(target)[1],
            "adapter_base": contexts[0].describe() if contexts else None,
            "adapter_extended": contexts[1].describe() if contexts else None,
            "output": output.describe() if output else None,
            "policy": verdict.policy if verdict else None,
        },
        "refused": refusals,
        "warnings": verdict.warnings if verdict else adapter.warnings,
    }


def compare_adapters(first: Adapter, second: Adapter) -> dict[str, Any]:
    """Return norms, cosine and subspace overlap of two adapters' changes, exact, from the
    factors."""
    shared = [n for n in first.modules if n in second.modules]
    mismatched = {n for n in shared if first.shape(n) != second.shape(n)}
    modules = {}
    with progress.bar("Comparing", max(1, len(shared))) as bar:
        for name in shared:
            if name not in mismatched:
                modules[name] = _compare_factors(first.factors(name), second.factors(name))
            bar.advance()
    leaves: dict[str, list[Fact]] = {}
    for name, fact in modules.items():
        leaves.setdefault(name.removesuffix(".weight").rpartition(".")[2], []).append(fact)
    return {
        "kind": "adapters",
        "first": _identity(first),
        "second": _identity(second),
        "base": _same_base(first, second),
        "context_same": first.context == second.context
        if first.context and second.context
        else None,
        "total": _total(modules.values()),
        "leaves": {leaf: _total(members) for leaf, members in leaves.items()},
        "only_in_first": [n for n in first.modules if n not in second.modules],
        "only_in_second": [n for n in second.modules if n not in first.modules],
        "other_shape": sorted(mismatched),
        "definitions": {
            "cosine": "<B1 A1, B2 A2> / (||B1 A1|| ||B2 A2||)",
            "overlap": "mean squared cosine of the principal angles between the spans of the "
            f"{_LEADING} leading singular vectors (all, where the rank is smaller), input and "
            "output",
            "by_chance": "expected `overlap` of random subspaces of these sizes",
        },
        "modules": modules,
    }


def _identity(adapter: Adapter) -> Fact:
    contexts = adapter.context
    return {
        "name": adapter.name,
        "base": adapter.config.base_model_name_or_path,
        "modules": len(adapter.modules),
        "context": f"{contexts[0].describe()} -> {contexts[1].describe()}" if contexts else None,
    }


def _same_base(first: Adapter, second: Adapter) -> Fact:
    """Whether the bases are the same: by fingerprint if both have one, else by sampled weights,
    else by name."""
    fingerprints = [a.record.base.fingerprint if a.record else None for a in (first, second)]
    if all(fingerprints) and fingerprints[0] == fingerprints[1]:
        return {"same": True, "how": "fingerprint"}
    samples = first.lineage(), second.lineage()
    if samples[0] and samples[1]:
        relation = lineage.relate(samples[0], samples[1], {})
        distance = relation.roles.get("other")
        return {
            "same": relation.verdict == "same", "how": "sampled weights",
            "verdict": relation.verdict, "distance": distance.distance if distance else None,
        }  # fmt: skip
    names = [a.config.base_model_name_or_path for a in (first, second)]
    return {"same": names[0] == names[1] if all(names) else None, "how": "name"}


def _compare_factors(first: Factors, second: Factors) -> Fact:
    norms = [math.sqrt(max(squared_product(x, x), 0.0)) for x in (first, second)]
    product = squared_product(first, second)
    fact = {
        "norm": norms[0],
        "other_norm": norms[1],
        "product": product,
        "cosine": product / (norms[0] * norms[1]) if norms[0] * norms[1] else None,
    }
    return fact | (_overlap(first, second) if norms[0] * norms[1] else {"overlap": None})


def _overlap(first: Factors, second: Factors) -> Fact:
    (u, v), (u2, v2) = _leading_vectors(*first), _leading_vectors(*second)
    k = min(u.shape[1], u2.shape[1])
    left = float((u.T @ u2).square().sum()) / k
    right = float((v.T @ v2).square().sum()) / k
    chance = max(u.shape[1], u2.shape[1]) * (1 / u.shape[0] + 1 / v.shape[0]) / 2
    return {
        "overlap": (left + right) / 2, "overlap_out": left, "overlap_in": right,
        "by_chance": chance, "directions": k,
    }  # fmt: skip


def _leading_vectors(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The leading left (m, k) and right (n, k) singular vectors of B A, float64, k <= _LEADING."""
    q, r = torch.linalg.qr(b.double())
    q2, r2 = torch.linalg.qr(a.double().T)
    u, s, vt = torch.linalg.svd(r @ r2.T)
    k = min(_LEADING, int((s > 1e-6 * s[0]).sum()))
    return q @ u[:, :k], q2 @ vt[:k].T


def _total(members: Iterable[Fact]) -> Fact:
    facts = list(members)
    norms = [math.sqrt(sum(f[key] ** 2 for f in facts)) for key in ("norm", "other_norm")]
    overlaps = [f for f in facts if f["overlap"] is not None]
    product = sum(f["product"] for f in facts)
    return {
        "modules": len(facts),
        "norm": norms[0],
        "other_norm": norms[1],
        "cosine": product / (norms[0] * norms[1]) if norms[0] * norms[1] else None,
        **{
            key: sum(f[key] for f in overlaps) / len(overlaps) if overlaps else None
            for key in ("overlap", "by_chance")
        },
    }
