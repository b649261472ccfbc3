"""What an extraction says about itself: the record's figures and the lines a person reads."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from typing import Any

import torch

import regraft
from regraft.adapters import lineage
from regraft.adapters import reader as format
from regraft.adapters.extract.select import Plan
from regraft.checkpoint.source import Checkpoint
from regraft.lowrank.certificate import ErrorBounds
from regraft.lowrank.rank import Floor
from regraft.lowrank.svd import LowRank
from regraft.rope import ContextSpec
from regraft.units import format_bytes, format_share, format_tokens


def svd_facts(
    svd: LowRank, floor: Floor, shape: tuple[int, int], squared_norm: float
) -> dict[str, Any]:
    signal = max(squared_norm - math.prod(shape) * floor.variance, 0.0)
    return {
        "spectrum": svd.S.tolist(),
        "upper": svd.bounds.upper.tolist(),
        "resolution": svd.bounds.resolution,
        "squared_tail": svd.bounds.squared_tail,
        "shortened": svd.bounds.shortened,
        "above": floor.above,
        "noise_edge": floor.edge,
        "squared_signal": signal,
        "squared_residual": svd.squared_error(),
        "method": svd.method,
        "passes": svd.passes,
    }


def module_record(fact: Mapping[str, Any], rank: int, rounding: float) -> dict[str, Any]:
    spectrum = torch.tensor(fact["spectrum"], dtype=torch.float64)
    squared = fact["delta_norm"] ** 2
    dropped = fact["squared_residual"] + float(spectrum[rank:].square().sum())
    bounds = ErrorBounds(
        squared_norm=squared,
        values=spectrum,
        upper=torch.tensor(fact["upper"], dtype=torch.float64),
        squared_residual=fact["squared_residual"],
        resolution=fact["resolution"],
        squared_tail=fact["squared_tail"],
        shortened=fact["shortened"],
    )
    certificate = bounds.certificate(rank)
    kept = float(spectrum[:rank].square().sum())
    signal = fact["squared_signal"]
    return {
        "shape": fact["shape"],
        "rank": rank,
        "delta_norm": fact["delta_norm"],
        "relative_delta": fact["relative_delta"],
        "energy": kept / squared,
        "energy_above_floor": min(kept / signal, 1.0) if signal > 0.02 * squared else None,
        "error": math.sqrt((dropped + rounding) / squared),
        "truncation_error": math.sqrt(dropped / squared),
        "rounding_error": math.sqrt(rounding / squared),
        # None: the least possible error is at the level of the arithmetic, no ratio to it is known
        "error_bound_over_optimum": certificate if math.isfinite(certificate) else None,
        "least_possible_error": bounds.least_error(rank) / math.sqrt(squared),
        "noise_edge": fact["noise_edge"],
        "above_noise": fact["above"],
        "method": fact["method"],
        "passes": fact["passes"],
        "spectrum": [float(f"{s:.5g}") for s in fact["spectrum"][:rank]],
    }


def totals(
    modules: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Mapping[str, Any]],
    rest: Mapping[str, Mapping[str, Any]],
    differences: list[str],
    uniform: int | None,
    dtype: torch.dtype,
) -> dict[str, Any]:
    squared = sum(fact["delta_norm"] ** 2 for fact in facts.values())
    missed = sum(
        (record["error"] * record["delta_norm"]) ** 2 for record in modules.values()
    ) + sum(fact["delta_norm"] ** 2 for name, fact in facts.items() if name not in modules)
    others = sum(fact["delta_norm"] ** 2 for name, fact in rest.items() if name not in differences)
    ranks = [record["rank"] for record in modules.values()]
    stored = sum(sum(r["shape"]) * (uniform or r["rank"]) for r in modules.values())
    above = [
        (r["energy_above_floor"], r["delta_norm"] ** 2)
        for r in modules.values()
        if r["energy_above_floor"] is not None
    ]
    return {
        "modules": len(modules),
        "rank_min": min(ranks),
        "rank_max": max(ranks),
        "rank_stored": uniform,
        "parameters": stored,
        "bytes": stored * dtype.itemsize,
        "error": math.sqrt(missed / squared),
        "energy": 1 - missed / squared,
        "energy_above_floor": sum(s * w for s, w in above) / sum(w for _, w in above)
        if above
        else None,
        "error_bound_over_optimum": max(
            (
                r["error_bound_over_optimum"]
                for r in modules.values()
                if r["error_bound_over_optimum"] is not None
            ),
            default=None,
        ),
        "modules_without_bound": sum(
            r["error_bound_over_optimum"] is None for r in modules.values()
        ),
        "share_of_all_change_not_captured": (missed + others) / (squared + others),
    }


def not_captured(
    rest: Mapping[str, Mapping[str, Any]],
    differences: list[str],
    modules: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What the adapter leaves out, by role: tensors, ||difference||, share of all change."""
    everything = sum(f["delta_norm"] ** 2 for f in (*rest.values(), *facts.values()))
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, fact in rest.items():
        if name not in differences:
            groups.setdefault(fact["role"], []).append(fact)
    for name, fact in facts.items():
        if name not in modules:
            groups.setdefault("projection below the noise", []).append(fact)
    return {
        role: {
            "tensors": len(members),
            "changed": sum(fact["delta_norm"] > 0 for fact in members),
            "delta_norm": math.sqrt(sum(fact["delta_norm"] ** 2 for fact in members)),
            "largest_relative_delta": max(
                (f["relative_delta"] for f in members if f["relative_delta"] is not None),
                default=None,
            ),
            "share_of_all_change": sum(f["delta_norm"] ** 2 for f in members) / everything
            if everything
            else 0.0,
            "rows_not_shared": sum(fact.get("rows_not_shared", 0) for fact in members),
        }
        for role, members in sorted(groups.items())
    }


def header(
    b: Checkpoint,
    e: Checkpoint,
    prints: tuple[str, str],
    contexts: tuple[ContextSpec, ContextSpec],
    relation: lineage.Relation,
    plan: Plan,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "schema_version": format.SCHEMA_VERSION,
        "kind": "adapter",
        "base": {
            "name": b.name,
            "revision": b.revision,
            "fingerprint": prints[0],
            "model_type": b.config.get("model_type"),
        },
        "extended": {"name": e.name, "revision": e.revision, "fingerprint": prints[1]},
        "context": {"base": contexts[0].to_json(), "extended": contexts[1].to_json()},
        "lineage": relation.to_json(),
        "layout": plan.layout,
        "rule": plan.rule.describe(),
        "notes": plan.notes,
        "arguments": dict(arguments),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The software that made a result."""
    from importlib.metadata import version

    return {
        "regraft": regraft.__version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "peft": version("peft"),
        "python": platform.python_version(),
    }


def plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "modules": len(plan.modules),
        "rank": plan.rule.describe(),
        "layout": plan.layout,
        "read_bytes": plan.read_bytes,
        "write_bytes": plan.write_bytes,
        "peak_memory_bytes": plan.peak_bytes,
        # measured: 0.16 GB of bfloat16 weights a second on two cores at rank 64
        "seconds_on_two_cores": round(plan.read_bytes / 2 / 0.25e9, 1),
        "tensors_not_factorised": len(plan.rest),
    }


def _optimality(totals: Mapping[str, Any]) -> str:
    """What is known of the error against that of the best adapter of the same ranks."""
    text = ""
    if totals["error_bound_over_optimum"] is not None:
        text = (
            f", proven within {totals['error_bound_over_optimum'] - 1:.2%} of the best possible at "
            "these ranks"
        )
    if totals["modules_without_bound"]:
        text += f"; {totals['modules_without_bound']} modules reproduced to rounding"
    return text


def summary(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The lines a person wants to see after an extraction: (label, text)."""
    totals, context = record["totals"], record["context"]
    ranks = (
        f"{totals['rank_min']}"
        if totals["rank_min"] == totals["rank_max"]
        else f"{totals['rank_min']} to {totals['rank_max']}"
    )
    before = ContextSpec.from_json(context["base"])
    after = ContextSpec.from_json(context["extended"])
    lines = [
        ("context", f"{before.describe()}  ->  {after.describe()}"),
        ("modules", f"{totals['modules']} of rank {ranks} ({record['rule']})"),
        ("size", f"{format_bytes(totals['bytes'])}, layout {record['layout']}"),
        (
            "error",
            f"{totals['error']:.4f} of the projections' change{_optimality(totals)}",
        ),
    ]
    if totals["energy_above_floor"] is not None:
        lines.append(("kept", f"{totals['energy_above_floor']:.1%} of the energy above the noise"))
    for role, fact in record["not_captured"].items():
        if fact["changed"]:
            lines.append(
                (
                    "not captured",
                    f"{role}: {fact['changed']} tensors, {fact['share_of_all_change']:.2%} of all "
                    f"change, at most {format_share(fact['largest_relative_delta'])} of a tensor",
                )
            )
    if record["unchanged"]:
        lines.append(("unchanged", f"{len(record['unchanged'])} modules, skipped"))
    lines += [("note", note) for note in record["notes"]]
    if before == after:
        length = format_tokens(after.max_position_embeddings)
        lines.append(("note", f"both models have the same context ({length})"))
    return lines
