"""Comparison of an adapter with a checkpoint or with another adapter."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from regraft import progress
from regraft.adapters import lineage
from regraft.adapters.apply.check import check_graft
from regraft.adapters.inspect.comparisons import (
    AdapterComparison,
    ComparedAdapter,
    FactorComparison,
    FactorTotal,
    GraftContexts,
    GraftInspection,
    SameBase,
    SampledBase,
)
from regraft.adapters.inspect.describe_checkpoint import context_or_reason
from regraft.adapters.inspect.figures import Factors, leaf_of, mean, squared_product
from regraft.adapters.reader import Adapter
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import InputError

_LEADING = 8  # singular vectors whose spans are compared


def compare_adapter_with_checkpoint(adapter: Adapter, target: Checkpoint) -> GraftInspection:
    """What `regraft apply` would do with the two, and the reasons for which it would refuse."""
    verdict, refused, fits = None, [], True
    try:
        verdict = check_graft(adapter, target)
        refused = [str(refusal.error) for refusal in verdict.refusals]
    except InputError as error:
        refused, fits = [str(error)], False
    contexts = adapter.context
    output = verdict.context if verdict else None
    return GraftInspection(
        adapter=adapter.name,
        checkpoint=target.name,
        fits=fits,
        modules=len(adapter.modules),
        changed_tensors=len(verdict.match.changes) if verdict else None,
        tensors=len(target.tensors),
        relation=verdict.relation if verdict else None,
        base=verdict.base if verdict else None,
        already_present=verdict.already_present if verdict else None,
        context=GraftContexts(
            checkpoint=context_or_reason(target)[1],
            adapter_base=contexts[0].describe() if contexts else None,
            adapter_extended=contexts[1].describe() if contexts else None,
            output=output.describe() if output else None,
            policy=verdict.policy if verdict else None,
        ),
        refused=refused,
        warnings=verdict.warnings if verdict else adapter.warnings,
    )


def compare_adapters(first: Adapter, second: Adapter) -> AdapterComparison:
    """Norms, cosine and subspace overlap of two adapters' changes, exact, from the factors."""
    shared = [name for name in first.modules if name in second.modules]
    other_shape = {name for name in shared if first.shape(name) != second.shape(name)}
    modules: dict[str, FactorComparison] = {}
    with progress.bar("Comparing", max(1, len(shared))) as bar:
        for name in shared:
            if name not in other_shape:
                modules[name] = _compare_factors(first.factors(name), second.factors(name))
            bar.advance()
    leaves: dict[str, list[FactorComparison]] = {}
    for name, module in modules.items():
        leaves.setdefault(leaf_of(name), []).append(module)
    both_state_context = first.context is not None and second.context is not None
    return AdapterComparison(
        first=_identity(first),
        second=_identity(second),
        base=_same_base(first, second),
        context_same=first.context == second.context if both_state_context else None,
        total=_total(modules.values()),
        leaves={leaf: _total(members) for leaf, members in leaves.items()},
        only_in_first=[name for name in first.modules if name not in second.modules],
        only_in_second=[name for name in second.modules if name not in first.modules],
        other_shape=sorted(other_shape),
        definitions={
            "cosine": "<B1 A1, B2 A2> / (||B1 A1|| ||B2 A2||)",
            "overlap": "mean squared cosine of the principal angles between the spans of the "
            f"{_LEADING} leading singular vectors (all, where the rank is smaller), input and "
            "output",
            "by_chance": "expected `overlap` of random subspaces of these sizes",
        },
        modules=modules,
    )


def _identity(adapter: Adapter) -> ComparedAdapter:
    contexts = adapter.context
    return ComparedAdapter(
        name=adapter.name,
        base=adapter.config.base_model_name_or_path,
        modules=len(adapter.modules),
        context=f"{contexts[0].describe()} -> {contexts[1].describe()}" if contexts else None,
    )


def _same_base(first: Adapter, second: Adapter) -> SameBase:
    """Whether the bases are the same: by fingerprint if both have one, else by sampled weights,
    else by name."""
    fingerprints = [a.record.base.fingerprint if a.record else None for a in (first, second)]
    if all(fingerprints) and fingerprints[0] == fingerprints[1]:
        return SameBase(same=True, how="fingerprint")
    samples = first.lineage(), second.lineage()
    if samples[0] and samples[1]:
        relation = lineage.relate(samples[0], samples[1], {})
        distance = relation.roles.get("other")
        return SampledBase(
            same=relation.verdict == "same",
            how="sampled weights",
            verdict=relation.verdict,
            distance=distance.distance if distance else None,
        )
    names = [a.config.base_model_name_or_path for a in (first, second)]
    return SameBase(same=names[0] == names[1] if all(names) else None, how="name")


def _compare_factors(first: Factors, second: Factors) -> FactorComparison:
    norm, other_norm = (math.sqrt(max(squared_product(x, x), 0.0)) for x in (first, second))
    product = squared_product(first, second)
    if not norm * other_norm:
        return FactorComparison(
            norm=norm, other_norm=other_norm, product=product, cosine=None, overlap=None
        )
    (u, v), (u2, v2) = _leading_vectors(*first), _leading_vectors(*second)
    directions = min(u.shape[1], u2.shape[1])
    left = float((u.T @ u2).square().sum()) / directions
    right = float((v.T @ v2).square().sum()) / directions
    return FactorComparison(
        norm=norm,
        other_norm=other_norm,
        product=product,
        cosine=product / (norm * other_norm),
        overlap=(left + right) / 2,
        overlap_out=left,
        overlap_in=right,
        by_chance=max(u.shape[1], u2.shape[1]) * (1 / u.shape[0] + 1 / v.shape[0]) / 2,
        directions=directions,
    )


def _leading_vectors(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The leading left (m, k) and right (n, k) singular vectors of B A, float64, k <= _LEADING."""
    q, r = torch.linalg.qr(b.double())
    q2, r2 = torch.linalg.qr(a.double().T)
    u, s, vt = torch.linalg.svd(r @ r2.T)
    k = min(_LEADING, int((s > 1e-6 * s[0]).sum()))
    return q @ u[:, :k], q2 @ vt[:k].T


def _total(members: Iterable[FactorComparison]) -> FactorTotal:
    modules = list(members)
    norm = math.sqrt(sum(module.norm**2 for module in modules))
    other_norm = math.sqrt(sum(module.other_norm**2 for module in modules))
    product = sum(module.product for module in modules)
    overlaps = [m.overlap for m in modules if m.overlap is not None]
    by_chance = [m.by_chance for m in modules if m.by_chance is not None]
    return FactorTotal(
        modules=len(modules),
        norm=norm,
        other_norm=other_norm,
        cosine=product / (norm * other_norm) if norm * other_norm else None,
        overlap=mean(overlaps) if overlaps else None,
        by_chance=mean(by_chance) if by_chance else None,
    )
