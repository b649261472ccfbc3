"""Description of one LoRA adapter, from its config, record and factors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from regraft.adapters.folder import DIFFERENCES, LINEAGE, WEIGHTS
from regraft.adapters.inspect.descriptions import (
    AdapterContexts,
    AdapterDescription,
    DescribedContext,
    LeafFigures,
    ModuleFigures,
)
from regraft.adapters.inspect.figures import leaf_of, mean, squared_product
from regraft.adapters.reader import Adapter
from regraft.adapters.serving import readers
from regraft.checkpoint.dtypes import dtype_name
from regraft.checkpoint.read.tensor_file import TensorFile
from regraft.lowrank.effective_rank import effective_rank_of_factors


def describe_adapter(adapter: Adapter) -> AdapterDescription:
    """The description of a PEFT LoRA, made by regraft or elsewhere."""
    modules = {name: _module(adapter, name) for name in adapter.modules}
    ranks = [module.rank for module in modules.values()]
    scalings = sorted({module.scaling for module in modules.values()})
    record = adapter.record
    extraction = record.extraction if record else None
    merge = record.merge if record else None
    files = [adapter.folder / name for name in (WEIGHTS, DIFFERENCES)]
    return AdapterDescription(
        name=adapter.name,
        base=adapter.config.base_model_name_or_path,
        base_revision=adapter.config.revision,
        base_fingerprint=record.base.fingerprint if record else None,
        extended=record.extended.name if record else None,
        method=merge.method if merge else None,
        merged_from=merge.inputs if merge else [],
        layout=record.layout if record else None,
        rule=extraction.rule if extraction else None,
        rank_min=min(ranks, default=0),
        rank_max=max(ranks, default=0),
        lora_alpha=adapter.config.lora_alpha,
        scaling_min=scalings[0] if scalings else None,
        scaling_max=scalings[-1] if scalings else None,
        rslora=bool(adapter.config.use_rslora),
        parameters=sum(module.parameters for module in modules.values()),
        bytes=sum(path.stat().st_size for path in files if path.is_file()),
        dtypes=_stored_dtypes(adapter.folder / WEIGHTS),
        change_norm=math.sqrt(sum(module.change_norm**2 for module in modules.values())),
        leaves=_by_leaf(modules),
        replaced=sorted(adapter.replaced),
        differences=adapter.differences,
        ignored=adapter.ignored,
        context=_contexts(adapter),
        carries_lineage=(adapter.folder / LINEAGE).is_file(),
        totals=record.totals if record else None,
        not_captured=extraction.not_captured if extraction else None,
        warnings=adapter.warnings,
        readers=_readers(adapter),
        modules=modules,
    )


def _contexts(adapter: Adapter) -> AdapterContexts | None:
    if adapter.context is None:
        return None
    base, extended = (
        DescribedContext(**spec.to_json(), text=spec.describe()) for spec in adapter.context
    )
    return AdapterContexts(base=base, extended=extended)


def _module(adapter: Adapter, name: str) -> ModuleFigures:
    b, a = adapter.factors(name)
    squared = squared_product((b, a), (b, a))
    return ModuleFigures(
        shape=list(adapter.shape(name)),
        rank=adapter.rank(name),
        scaling=adapter.modules[name].scaling,
        parameters=b.numel() + a.numel(),
        change_norm=math.sqrt(squared),
        effective_rank=effective_rank_of_factors(b, a) if squared else 0.0,
    )


def _by_leaf(modules: Mapping[str, ModuleFigures]) -> dict[str, LeafFigures]:
    groups: dict[str, list[ModuleFigures]] = {}
    for name, module in modules.items():
        groups.setdefault(leaf_of(name), []).append(module)
    return {leaf: _leaf(members) for leaf, members in groups.items()}


def _leaf(members: list[ModuleFigures]) -> LeafFigures:
    effective_ranks = [module.effective_rank for module in members]
    return LeafFigures(
        modules=len(members),
        rank_min=min(module.rank for module in members),
        rank_max=max(module.rank for module in members),
        parameters=sum(module.parameters for module in members),
        change_norm=math.sqrt(sum(module.change_norm**2 for module in members)),
        effective_rank=mean(effective_ranks),
        effective_rank_min=min(effective_ranks),
        effective_rank_max=max(effective_ranks),
    )


def _stored_dtypes(path: Path) -> dict[str, int]:
    with TensorFile(path) as file:
        names = [dtype_name(info.dtype) for info in file.tensors.values()]
    return dict(Counter(names).most_common())


def _readers(adapter: Adapter) -> dict[str, str]:
    """The programs that can load the adapter unchanged, and what each leaves out."""
    contexts = adapter.context
    changes = contexts is not None and contexts[0] != contexts[1]
    length = contexts[1].max_position_embeddings if contexts and changes else None
    return readers(adapter.facts, length)
