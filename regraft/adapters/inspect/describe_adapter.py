"""Description of one LoRA adapter, from its config, record and factors."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from regraft.adapters.folder import DIFFERENCES, LINEAGE, WEIGHTS
from regraft.adapters.inspect.figures import dtype_name, mean_and_range, squared_product
from regraft.adapters.reader import Adapter
from regraft.adapters.serving import readers
from regraft.checkpoint.read.tensor_file import TensorFile
from regraft.lowrank.effective_rank import effective_rank_of_factors
from regraft.records import to_json


def describe_adapter(adapter: Adapter) -> dict[str, Any]:
    """Describe a PEFT LoRA, made by regraft or not."""
    modules = {name: _module(adapter, name) for name in adapter.modules}
    ranks = [fact["rank"] for fact in modules.values()]
    scalings = sorted({fact["scaling"] for fact in modules.values()})
    record, contexts = adapter.record, adapter.context
    extraction = record.extraction if record else None
    merge = record.merge if record else None
    weights = adapter.folder / WEIGHTS
    return {
        "kind": "adapter",
        "name": adapter.name,
        "base": adapter.config.base_model_name_or_path,
        "base_revision": adapter.config.revision,
        "base_fingerprint": record.base.fingerprint if record else None,
        "extended": record.extended.name if record else None,
        "method": merge.method if merge else None,
        "merged_from": merge.inputs if merge else [],
        "layout": record.layout if record else None,
        "rule": extraction.rule if extraction else None,
        "rank_min": min(ranks, default=0),
        "rank_max": max(ranks, default=0),
        "lora_alpha": adapter.config.lora_alpha,
        "scaling_min": scalings[0] if scalings else None,
        "scaling_max": scalings[-1] if scalings else None,
        "rslora": bool(adapter.config.use_rslora),
        "parameters": sum(fact["parameters"] for fact in modules.values()),
        "bytes": sum(
            (adapter.folder / name).stat().st_size
            for name in (WEIGHTS, DIFFERENCES)
            if (adapter.folder / name).is_file()
        ),
        "dtypes": _stored_dtypes(weights),
        "change_norm": math.sqrt(sum(fact["change_norm"] ** 2 for fact in modules.values())),
        "leaves": _by_leaf(modules),
        "replaced": sorted(adapter.replaced),
        "differences": adapter.differences,
        "ignored": adapter.ignored,
        "context": {
            "base": {**contexts[0].to_json(), "text": contexts[0].describe()},
            "extended": {**contexts[1].to_json(), "text": contexts[1].describe()},
        }
        if contexts
        else None,
        "carries_lineage": (adapter.folder / LINEAGE).is_file(),
        "totals": to_json(record.totals) if record else None,
        "not_captured": to_json(extraction.not_captured) if extraction else None,
        "warnings": adapter.warnings,
        "readers": _readers(adapter, max(ranks, default=0)),
        "modules": modules,
    }


def _module(adapter: Adapter, name: str) -> dict[str, Any]:
    b, a = adapter.factors(name)
    squared = squared_product((b, a), (b, a))
    return {
        "shape": list(adapter.shape(name)),
        "rank": adapter.rank(name),
        "scaling": adapter.modules[name].scaling,
        "parameters": b.numel() + a.numel(),
        "change_norm": math.sqrt(squared),
        "effective_rank": effective_rank_of_factors(b, a) if squared else 0.0,
    }


def _by_leaf(modules: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, fact in modules.items():
        groups.setdefault(name.removesuffix(".weight").rpartition(".")[2], []).append(fact)
    return {
        leaf: {
            "modules": len(members),
            "rank_min": min(fact["rank"] for fact in members),
            "rank_max": max(fact["rank"] for fact in members),
            "parameters": sum(fact["parameters"] for fact in members),
            "change_norm": math.sqrt(sum(fact["change_norm"] ** 2 for fact in members)),
            **mean_and_range("effective_rank", (fact["effective_rank"] for fact in members)),
        }
        for leaf, members in groups.items()
    }


def _stored_dtypes(path: Path) -> dict[str, int]:
    with TensorFile(path) as file:
        names = [dtype_name(info.dtype) for info in file.tensors.values()]
    return dict(Counter(names).most_common())


def _readers(adapter: Adapter, rank: int) -> dict[str, str]:
    """The programs that can load the adapter unchanged, and what each leaves out."""
    contexts = adapter.context
    return readers(
        rank=rank,
        uniform=not (adapter.config.rank_pattern or adapter.config.alpha_pattern),
        whole_tensors=len(adapter.replaced),
        differences=len(adapter.differences),
        length=contexts[1].max_position_embeddings
        if contexts and contexts[0] != contexts[1]
        else None,
    )
