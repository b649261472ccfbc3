"""How an adapter is related to a checkpoint or to another adapter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from regraft import progress
from regraft.adapters import lineage
from regraft.adapters.apply.check import check_graft
from regraft.adapters.inspect.describe import context_of, squared_product
from regraft.adapters.reader import Adapter
from regraft.checkpoint.source import Checkpoint
from regraft.errors import InputError
from regraft.records import to_json

_TOP = 8  # singular vectors whose span two adapters are compared by
Fact = dict[str, Any]


def relate_adapter(lora: Adapter, target: Checkpoint) -> dict[str, Any]:
    """What `regraft apply` would make of the two."""
    verdict, refusals, fits = None, [], True
    try:
        verdict = check_graft(lora, target)
        refusals = [str(refusal.error) for refusal in verdict.refusals]
    except InputError as error:
        refusals, fits = [str(error)], False
    both = lora.context
    output = verdict.context if verdict else None
    return {
        "kind": "checkpoint and adapter",
        "adapter": lora.name,
        "checkpoint": target.name,
        "fits": fits,
        "modules": len(lora.modules),
        "changed_tensors": len(verdict.match.changes) if verdict else None,
        "tensors": len(target.tensors),
        "relation": to_json(verdict.relation) if verdict else None,
        "base": to_json(verdict.base) if verdict else None,
        "already_present": verdict.already_present if verdict else None,
        "context": {
            "checkpoint": context_of(target)[1],
            "adapter_base": both[0].describe() if both else None,
            "adapter_extended": both[1].describe() if both else None,
            "output": output.describe() if output else None,
            "policy": verdict.policy if verdict else None,
        },
        "refused": refusals,
        "warnings": verdict.warnings if verdict else lora.warnings,
    }


def relate_adapters(first: Adapter, second: Adapter) -> dict[str, Any]:
    """Norms, cosine and subspace overlap of two adapters' changes, exactly from their factors."""
    shared = [n for n in first.modules if n in second.modules]
    odd = {n for n in shared if first.shape(n) != second.shape(n)}
    modules = {}
    with progress.bar("Comparing", max(1, len(shared))) as bar:
        for name in shared:
            if name not in odd:
                modules[name] = _pair(first.factors(name), second.factors(name))
            bar.advance()
    leaves: dict[str, list[Fact]] = {}
    for name, fact in modules.items():
        leaves.setdefault(name.removesuffix(".weight").rpartition(".")[2], []).append(fact)
    return {
        "kind": "adapters",
        "first": _adapter_brief(first),
        "second": _adapter_brief(second),
        "base": _same_base(first, second),
        "context_same": first.context == second.context
        if first.context and second.context
        else None,
        "total": _sum_pairs(modules.values()),
        "leaves": {leaf: _sum_pairs(members) for leaf, members in leaves.items()},
        "only_in_first": [n for n in first.modules if n not in second.modules],
        "only_in_second": [n for n in second.modules if n not in first.modules],
        "other_shape": sorted(odd),
        "definitions": {
            "cosine": "<B1 A1, B2 A2> / (||B1 A1|| ||B2 A2||)",
            "overlap": "mean squared cosine of the principal angles between the spans of the "
            f"{_TOP} leading singular vectors (all, where the rank is smaller), input and output",
            "by_chance": "what `overlap` is for random subspaces of these sizes",
        },
        "modules": modules,
    }


def _adapter_brief(adapter: Adapter) -> Fact:
    both = adapter.context
    return {
        "name": adapter.name,
        "base": adapter.config.base_model_name_or_path,
        "modules": len(adapter.modules),
        "context": f"{both[0].describe()} -> {both[1].describe()}" if both else None,
    }


def _same_base(first: Adapter, second: Adapter) -> Fact:
    """By fingerprint where both carry one, else by sampled weights, else by name."""
    prints = [a.record.base.fingerprint if a.record else None for a in (first, second)]
    if all(prints) and prints[0] == prints[1]:
        return {"same": True, "how": "fingerprint"}
    samples = first.lineage(), second.lineage()
    if samples[0] and samples[1]:
        relation = lineage.relate(samples[0], samples[1], {})
        far = relation.roles.get("other")
        return {
            "same": relation.verdict == "same", "how": "sampled weights",
            "verdict": relation.verdict, "distance": far.distance if far else None,
        }  # fmt: skip
    names = [a.config.base_model_name_or_path for a in (first, second)]
    return {"same": names[0] == names[1] if all(names) else None, "how": "name"}


def _pair(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Fact:
    norms = [math.sqrt(max(squared_product(x, x), 0.0)) for x in (one, other)]
    product = squared_product(one, other)
    fact = {
        "norm": norms[0],
        "other_norm": norms[1],
        "product": product,
        "cosine": product / (norms[0] * norms[1]) if norms[0] * norms[1] else None,
    }
    return fact | (_overlap(one, other) if norms[0] * norms[1] else {"overlap": None})


def _overlap(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Fact:
    (u, v), (u2, v2) = _top(*one), _top(*other)
    k = min(u.shape[1], u2.shape[1])
    left = float((u.T @ u2).square().sum()) / k
    right = float((v.T @ v2).square().sum()) / k
    chance = max(u.shape[1], u2.shape[1]) * (1 / u.shape[0] + 1 / v.shape[0]) / 2
    return {
        "overlap": (left + right) / 2, "overlap_out": left, "overlap_in": right,
        "by_chance": chance, "directions": k,
    }  # fmt: skip


def _top(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The leading left (m, k) and right (n, k) singular vectors of B A, float64, k <= _TOP."""
    q, r = torch.linalg.qr(b.double())
    q2, r2 = torch.linalg.qr(a.double().T)
    u, s, vt = torch.linalg.svd(r @ r2.T)
    k = min(_TOP, int((s > 1e-6 * s[0]).sum()))
    return q @ u[:, :k], q2 @ vt[:k].T


def _sum_pairs(members: Iterable[Fact]) -> Fact:
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
