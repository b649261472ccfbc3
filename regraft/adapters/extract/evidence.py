"""The figures of an extraction, for its record and its summary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from regraft.adapters.extract.decomposition import Decomposition
from regraft.adapters.extract.rank_gain import LITTLE_SIGNAL, describe, gains, suggested_rank
from regraft.adapters.extract.rest import RestChange
from regraft.adapters.extract.select import Module, Plan
from regraft.adapters.writer import totals_of
from regraft.records import (
    AdapterRecord,
    AdapterTotals,
    CalibrationRecord,
    ModuleRecord,
    NotCaptured,
    Plain,
    TruncationRecord,
)
from regraft.rope import ContextSpec
from regraft.units import format_bytes, format_share, format_tokens


def module_record(
    decomposition: Decomposition,
    rank: int,
    squared_rounding: float,
    weighted_rounding: float | None = None,
) -> ModuleRecord:
    """The record of a module whose decomposition was cut to `rank` and stored.

    squared_rounding: ||B A - stored B A||_F^2; weighted_rounding: the same in the norm of the
    inputs, in a calibrated extraction.
    """
    spectrum = torch.tensor(decomposition.spectrum, dtype=torch.float64)
    plain, squared = decomposition.delta_norm**2, decomposition.squared_norm
    dropped = decomposition.squared_residual + float(spectrum[rank:].square().sum())
    captured = float(spectrum[:rank].square().sum())
    signal, in_factors = decomposition.squared_signal, decomposition.captured_signal()[rank]
    bounds = decomposition.bounds()
    certificate = bounds.certificate(rank)
    missed, weighted_error = dropped, None
    if weighted_rounding is not None:
        missed = decomposition.plain_tails()[rank]
        weighted_error = math.sqrt((dropped + weighted_rounding) / squared)
    return ModuleRecord(
        shape=decomposition.shape,
        rank=rank,
        delta_norm=decomposition.delta_norm,
        relative_delta=decomposition.relative_delta,
        error=math.sqrt((missed + squared_rounding) / plain),
        rounding_error=math.sqrt(squared_rounding / plain),
        weighted_norm=decomposition.weighted_norm,
        weighted_error=weighted_error,
        truncation=TruncationRecord(
            energy=captured / squared,
            signal=signal / squared,
            signal_captured=in_factors / signal if signal > LITTLE_SIGNAL * squared else None,
            truncation_error=math.sqrt(dropped / squared),
            error_bound_over_optimum=certificate if math.isfinite(certificate) else None,
            least_possible_error=bounds.least_error(rank) / math.sqrt(squared),
            noise_edge=decomposition.noise_edge,
            above_noise=decomposition.above,
            method=decomposition.method,
            passes=decomposition.passes,
            spectrum=[float(f"{s:.5g}") for s in decomposition.spectrum[:rank]],
        ),
    )


def _weighted_error(
    modules: Mapping[str, ModuleRecord], decompositions: Mapping[str, Decomposition]
) -> float | None:
    """The relative error over all modules in the norms of their inputs; None in the plain norm."""
    if all(decomposition.weighted_norm is None for decomposition in decompositions.values()):
        return None
    missed = squared = 0.0
    for name, decomposition in decompositions.items():
        squared += decomposition.squared_norm
        error = 1.0
        if (module := modules.get(name)) is not None:
            error = module.error if module.weighted_error is None else module.weighted_error
        missed += error**2 * decomposition.squared_norm
    return math.sqrt(missed / squared)


def totals(
    modules: Mapping[str, ModuleRecord],
    decompositions: Mapping[str, Decomposition],
    rest: Mapping[str, RestChange],
    differences: list[str],
    uniform_rank: int | None,
    dtype: torch.dtype,
    plan: Plan,
    roundings: Mapping[str, float],
) -> AdapterTotals:
    """Error and energy over all chosen modules, those below the noise floor included."""
    squared = sum(decomposition.delta_norm**2 for decomposition in decompositions.values())
    missed = sum((module.error * module.delta_norm) ** 2 for module in modules.values()) + sum(
        decomposition.delta_norm**2
        for name, decomposition in decompositions.items()
        if name not in modules
    )
    others = sum(change.delta_norm**2 for name, change in rest.items() if name not in differences)
    truncations = [module.truncation for module in modules.values() if module.truncation]
    ranks = {name: modules[name].rank if name in modules else 0 for name in decompositions}
    by_rank = gains(
        decompositions, ranks, roundings,
        itemsize=dtype.itemsize, padded=uniform_rank is not None,
    )  # fmt: skip
    return totals_of(
        modules,
        uniform_rank=uniform_rank,
        dtype=dtype,
        error=math.sqrt(missed / squared),
        weighted_error=_weighted_error(modules, decompositions),
        energy=1 - missed / squared,
        signal=math.fsum(decomposition.squared_signal for decomposition in decompositions.values())
        / sum(decomposition.squared_norm for decomposition in decompositions.values()),
        signal_captured=by_rank[-1].signal_captured,
        error_bound_over_optimum=max(
            (
                t.error_bound_over_optimum
                for t in truncations
                if t.error_bound_over_optimum is not None
            ),
            default=None,
        ),
        modules_without_bound=sum(t.error_bound_over_optimum is None for t in truncations),
        by_rank=by_rank,
        suggested_rank=suggested_rank(
            by_rank, plan.rule.cap, more_above=_more_above(decompositions, ranks, plan)
        )
        if uniform_rank is not None or plan.rule.rank is not None
        else None,
        share_of_all_change_not_captured=(missed + others) / (squared + others),
    )


def _more_above(
    decompositions: Mapping[str, Decomposition], ranks: Mapping[str, int], plan: Plan
) -> bool:
    """Whether more directions are above rounding than the adapter has.

    With a fixed rank no more are computed, so that all of them above is taken as a sign of more.
    """
    fixed = plan.rule.rank is not None
    return any(
        decomposition.above > ranks[name]
        or (fixed and 0 < decomposition.above == ranks[name] < min(decomposition.shape))
        for name, decomposition in decompositions.items()
    )


def not_captured(
    rest: Mapping[str, RestChange],
    differences: list[str],
    below_noise: Iterable[Decomposition],
    decompositions: Mapping[str, Decomposition],
) -> dict[str, NotCaptured]:
    """The changes that the adapter does not hold, by role of the tensors."""
    groups: dict[str, list[RestChange | Decomposition]] = {}
    for name, change in rest.items():
        if name not in differences:
            groups.setdefault(change.role, []).append(change)
    for decomposition in below_noise:
        groups.setdefault("projection below the noise", []).append(decomposition)
    total = sum(change.delta_norm**2 for change in rest.values()) + sum(
        decomposition.delta_norm**2 for decomposition in decompositions.values()
    )
    return {
        role: NotCaptured(
            tensors=len(members),
            changed=sum(member.delta_norm > 0 for member in members),
            delta_norm=math.sqrt(sum(member.delta_norm**2 for member in members)),
            largest_relative_delta=max(
                (m.relative_delta for m in members if m.relative_delta is not None), default=None
            ),
            share_of_all_change=sum(m.delta_norm**2 for m in members) / total if total else 0.0,
            rows_not_shared=sum(m.rows_not_shared for m in members if isinstance(m, RestChange)),
        )
        for role, members in sorted(groups.items())
    }


def skipped(
    modules: list[Module], decompositions: Mapping[str, Decomposition], ranks: Mapping[str, int]
) -> tuple[list[str], list[str]]:
    """The modules without factors: (unchanged, changed by no more than rounding)."""
    names = [module.name for module in modules if ranks.get(module.name, 0) == 0]
    unchanged = [name for name in names if decompositions[name].unchanged]
    return unchanged, [name for name in names if not decompositions[name].unchanged]


def plan_record(plan: Plan) -> dict[str, Plain]:
    """The plan that a dry run prints."""
    return {
        "modules": len(plan.modules),
        "rank": plan.rule.describe().removeprefix("rank "),
        "layout": plan.layout,
        "read_bytes": plan.read_bytes,
        "write_bytes": plan.write_bytes,
        "peak_memory_bytes": plan.peak_bytes,
        # measured: 0.16 GB of bfloat16 weights a second on two cores at rank 64
        "seconds": round(plan.read_bytes / 2 / 0.25e9, 1),
        "tensors_not_factorised": len(plan.rest),
    }


def _optimality(totals: AdapterTotals) -> str:
    """A phrase on the error against that of the best adapter of the same ranks."""
    text = ""
    if totals.error_bound_over_optimum is not None:
        text = (
            f", proven within {totals.error_bound_over_optimum - 1:.2%} of the best possible at "
            "these ranks"
        )
    if totals.modules_without_bound:
        text += f"; {totals.modules_without_bound} modules reproduced to rounding"
    return text


def _errors(totals: AdapterTotals, calibration: CalibrationRecord | None) -> list[tuple[str, str]]:
    if calibration is None or totals.weighted_error is None:
        return [("error", f"{totals.error:.4f} of the projections' change{_optimality(totals)}")]
    return [
        (
            "error on inputs",
            f"{totals.weighted_error:.4f} of the change of the projections' outputs on "
            f"{calibration.text}{_optimality(totals)}",
        ),
        ("plain error", f"{totals.error:.4f} of the projections' change"),
    ]


def _directions_above(modules: Mapping[str, ModuleRecord]) -> str:
    """A phrase on the number of computed directions of a module that are above rounding."""
    known = [module for module in modules.values() if module.truncation is not None]
    counts = sorted({m.truncation.above_noise for m in known if m.truncation is not None})
    bound = any(m.truncation is not None and m.truncation.above_noise >= m.rank for m in known)
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{span}{' or more' if bound else ''} directions a module"


def summary(record: AdapterRecord) -> list[tuple[str, str]]:
    """(label, text) of the summary that is printed after an extraction."""
    totals, extraction = record.totals, record.extraction
    assert totals is not None
    assert extraction is not None
    ranks = (
        f"{totals.rank_min}"
        if totals.rank_min == totals.rank_max
        else f"{totals.rank_min} to {totals.rank_max}"
    )
    before = ContextSpec.from_record(record.context.base)
    after = ContextSpec.from_record(record.context.extended)
    lines = [
        ("context", f"{before.describe()}  ->  {after.describe()}"),
        ("modules", f"{totals.modules} of rank {ranks} ({extraction.rule})"),
        ("size", f"{format_bytes(totals.bytes)}, layout {record.layout}"),
        *_errors(totals, extraction.calibration),
    ]
    lines += describe(totals, _directions_above(record.modules))
    for role, group in extraction.not_captured.items():
        if group.changed:
            lines.append(
                (
                    "not captured",
                    f"{role}: {group.changed} tensors, {group.share_of_all_change:.2%} of "
                    f"all change, at most {format_share(group.largest_relative_delta)} of a "
                    "tensor",
                )
            )
    if extraction.unchanged:
        lines.append(("unchanged", f"{len(extraction.unchanged)} modules, skipped"))
    lines += [("note", note) for note in extraction.notes]
    if before == after:
        length = format_tokens(after.max_position_embeddings)
        lines.append(("note", f"both models have the same context ({length})"))
    return lines
