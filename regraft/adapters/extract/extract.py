"""`extract_lora`: the difference of two checkpoints as a LoRA adapter.

Every projection's delta is decomposed by a truncated SVD with a certificate. Tensors are streamed
one at a time through two reused buffers (the float32 delta and its bfloat16 copy), on a GPU up to
four at once (`streams`), so peak memory depends on the largest projections. The adapter is written
when all ranks are known, read back with PEFT and published by rename.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import torch
from torch import Tensor

from regraft import progress
from regraft.adapters.extract import card, evidence, moments
from regraft.adapters.extract.deltas import difference, difference_dtype
from regraft.adapters.extract.factorize import Factorizer
from regraft.adapters.extract.rest import RestChange, measure_rest
from regraft.adapters.extract.select import Module, Plan, check_lineage, make_plan, shared_shape
from regraft.adapters.extract.verify import verify_with_peft
from regraft.adapters.serving import PORTABLE_CAP
from regraft.adapters.writer import AdapterModule, write_adapter, write_adapter_record
from regraft.checkpoint.config import load_config
from regraft.checkpoint.dtypes import OUTPUT_DTYPES
from regraft.checkpoint.hf.pretrained import check_tensors
from regraft.checkpoint.hf.roles import Role, checkpoint_roles
from regraft.checkpoint.read.context import checkpoint_context
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.disk import need_space
from regraft.checkpoint.write.shard_plan import PlannedTensor
from regraft.device import full_precision, pick_device
from regraft.errors import InputError
from regraft.job import Job
from regraft.lowrank.rank import RankRule, parse_rule
from regraft.records import (
    AdapterRecord,
    ContextChange,
    ExtractionRecord,
    Layout,
    ModelRecord,
    Plain,
    to_json,
    versions,
)
from regraft.units import parse_bytes


@full_precision()
def extract_lora(
    base: str | Path,
    extended: str | Path,
    out: str | Path,
    *,
    rank: int | str | None = None,
    energy: float | None = None,
    budget: str | int | None = None,
    layout: str = "portable",
    modules: str = "all-linear",
    dtype: str = "bfloat16",
    exact: bool = False,
    calibrate: str | Path | None = None,
    calibrate_length: str | int | None = None,
    calibrate_tokens: str | int | None = None,
    verify: bool = True,
    full_fingerprint: bool = False,
    device: str = "auto",
    seed: int = 0,
    force: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
) -> AdapterRecord:
    """Write an adapter that turns `base` into (nearly) `extended` to the folder `out`.

    rank, energy, budget: see `regraft.lowrank.rank`; without any of them the rank is 64. layout:
    'portable' (one zero-padded rank, read correctly by PEFT, vLLM, SGLang and llama.cpp), 'compact'
    (a rank per module, PEFT only) or 'exact' (compact, plus the dense differences of all other
    tensors). modules: 'all-linear', 'attention', 'mlp', leaf names or regexes of module names,
    separated by commas. exact: LAPACK's SVD instead of the randomised one. calibrate: a text; the
    error is minimised on the inputs that projections get in `extended` on this text (see
    `regraft.lowrank.weighted`), in rows of `calibrate_length` tokens (8k, or the context) and
    `calibrate_tokens` in all (64k). force: accept checkpoints that appear swapped or unrelated.
    dry_run: only check; the record has a `plan`.

    Returns the record in regraft.json. Raises CheckpointError (broken or mismatched checkpoints,
    NaN), LineageError (unrelated or swapped checkpoints), InputError (arguments), OutputError
    (disk).
    """
    layout, rule = _check_arguments(rank, energy, budget, layout, dtype)
    if calibrate is None and (calibrate_length, calibrate_tokens) != (None, None):
        raise InputError("--calibrate-length and --calibrate-tokens need --calibrate TEXT.")
    torch_device, stored_dtype = pick_device(device), OUTPUT_DTYPES[dtype]
    texts = [] if calibrate is None else [calibrate]
    job = Job(out, inputs=[base, extended, *texts], overwrite=overwrite, resume=resume)
    with Checkpoint.open(base) as b, Checkpoint.open(extended) as e:
        roles = checkpoint_roles(b)
        contexts = checkpoint_context(b), checkpoint_context(e)
        plan = make_plan(b, e, roles, rule, layout, modules, stored_dtype)
        relation = check_lineage(b, e, roles, contexts, force)
        if verify:
            check_tensors(b, load_config(b.config, b.name))
        calibration = None
        if calibrate is not None:
            calibration = moments.open_calibration(
                str(calibrate), calibrate_length, calibrate_tokens, b, e, contexts[1],
                seed=seed, force=force,
            )  # fmt: skip
            plan = moments.with_memory(plan, calibration)
        arguments: dict[str, Plain] = {
            "rank": rank, "energy": energy, "budget": budget, "layout": layout,
            "modules": modules, "dtype": dtype, "exact": exact, "seed": seed,
        }  # fmt: skip
        if calibration is not None:
            arguments |= {
                "calibrate": str(calibrate), "calibrate_length": calibration.record.length,
                "calibrate_tokens": calibration.record.tokens,
            }  # fmt: skip
        record = AdapterRecord(
            made_by="extract-lora",
            base=_model(b, full_fingerprint),
            extended=_model(e, full_fingerprint),
            context=ContextChange(base=contexts[0].to_record(), extended=contexts[1].to_record()),
            layout=layout,
            differences=[],
            modules={},
            totals=None,
            arguments=arguments,
            versions=versions(),
            extraction=ExtractionRecord(
                rule=plan.rule.describe(),
                lineage=relation,
                notes=plan.notes,
                calibration=None if calibration is None else calibration.record,
            ),
        )
        for note in plan.notes:
            progress.warn(note)
        if dry_run:
            return replace(record, plan=evidence.plan_record(plan))
        with job.start(to_json(record), torch_device.type) as staging:
            factorizer = Factorizer(
                b, e, plan, staging, torch_device,
                dtype=stored_dtype, seed=seed, exact=exact, calibration=calibration,
            )  # fmt: skip
            need_space(staging.folder, factorizer.file_sizes(), at_most=plan.rule.rank is None)
            factorizer.run()
            rest = measure_rest(b, e, plan.rest, roles)
            with progress.stage("Writing the adapter"):
                record = _write(
                    staging.folder, record, b, e, plan, factorizer, rest, roles, stored_dtype
                )
            write_adapter_record(staging.folder, record)
            with progress.stage("Writing the card"):
                card.write_adapter_card(staging.folder, record, evidence.summary(record))
            if verify:
                worst = verify_with_peft(
                    staging.folder, b, _with_factors(plan, factorizer), factorizer, stored_dtype
                )
                progress.note(f"PEFT loads it; largest relative deviation {worst:.1e}")
            staging.publish()
    return record


def _check_arguments(
    rank: int | str | None,
    energy: float | None,
    budget: str | int | None,
    layout: str,
    dtype: str,
) -> tuple[Layout, RankRule]:
    if dtype not in OUTPUT_DTYPES:
        raise InputError(f"--dtype '{dtype}' is not one of {', '.join(OUTPUT_DTYPES)}.")
    layouts = get_args(Layout)
    if layout not in layouts:
        raise InputError(f"--layout '{layout}' is not one of {', '.join(layouts)}.")
    cap = PORTABLE_CAP if layout == "portable" else None
    if rank is None and energy is None and budget is None:
        rank = 64
    size = parse_bytes(budget, "--budget") if budget is not None else None
    return cast(Layout, layout), parse_rule(rank, energy, size, cap)


def _model(checkpoint: Checkpoint, full_fingerprint: bool) -> ModelRecord:
    return ModelRecord(
        name=checkpoint.name,
        revision=checkpoint.revision,
        fingerprint=checkpoint.fingerprint(full=full_fingerprint),
        model_type=checkpoint.config.get("model_type"),
    )


def _with_factors(plan: Plan, factorizer: Factorizer) -> list[Module]:
    return [module for module in plan.modules if factorizer.ranks.get(module.name, 0) > 0]


def _write(
    folder: Path,
    record: AdapterRecord,
    b: Checkpoint,
    e: Checkpoint,
    plan: Plan,
    factorizer: Factorizer,
    rest: Mapping[str, RestChange],
    roles: Mapping[str, Role],
    dtype: torch.dtype,
) -> AdapterRecord:
    """Write PEFT's files, the samples of the base and, in layout `exact`, the dense differences.

    Returns the record with the figures of all modules. Raises InputError where no module changed.
    """
    modules, ranks = _with_factors(plan, factorizer), factorizer.ranks
    if not modules:
        raise InputError(
            f"Nothing to extract: no chosen matrix of {e.name} differs from {b.name} "
            "above the noise of its storage; choose other --modules or --rank."
        )
    uniform_rank = max(ranks[m.name] for m in modules) if plan.layout == "portable" else None
    differences = []
    if plan.layout == "exact":
        differences = [name for name, change in rest.items() if change.delta_norm > 0]
    shapes = {name: shared_shape(b, e, name) for name in differences}

    def dense() -> Iterator[tuple[str, Tensor]]:
        return ((name, difference(b, e, name, dtype)) for name in differences)

    roundings = write_adapter(
        folder,
        b,
        roles,
        [AdapterModule(m.name, m.kind, _base_shape(b, m), ranks[m.name]) for m in modules],
        (factorizer.factors(m, ranks[m.name]) for m in modules),
        dtype=dtype,
        uniform_rank=uniform_rank,
        differences=(
            [
                PlannedTensor(name, shape, difference_dtype(shape, dtype))
                for name, shape in shapes.items()
            ],
            dense(),
        ),
    )
    decompositions = factorizer.decompositions
    records = {
        m.name: evidence.module_record(
            decompositions[m.name],
            ranks[m.name],
            roundings[m.name],
            factorizer.weighted_rounding(m, ranks[m.name]),
        )
        for m in modules
    }
    unchanged, below_noise = evidence.skipped(plan.modules, decompositions, ranks)
    assert record.extraction is not None
    return replace(
        record,
        differences=differences,
        modules=records,
        totals=evidence.totals(
            records, decompositions, rest, differences, uniform_rank, dtype, plan, roundings
        ),
        extraction=replace(
            record.extraction,
            unchanged=unchanged,
            below_noise=below_noise,
            not_captured=evidence.not_captured(
                rest,
                differences,
                [decompositions[n] for n in (*unchanged, *below_noise)],
                decompositions,
            ),
        ),
    )


def _base_shape(base: Checkpoint, module: Module) -> tuple[int, int]:
    """Shape of the base's tensor; rows that the extended model lacks get a change of zero."""
    rows, columns = base.tensors[module.tensor].shape
    return rows, columns
