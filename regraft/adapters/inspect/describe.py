"""What one folder is: a checkpoint, an adapter, or what regraft made of them.

Everything is read from headers, configs and records; of an adapter also its factors, of a local
checkpoint 1024 weights of each tensor (its fingerprint).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from regraft.adapters.apply.apply import summary as graft_summary
from regraft.adapters.folder import CONFIG, DIFFERENCES, LINEAGE, RECORD, WEIGHTS
from regraft.adapters.reader import Adapter
from regraft.adapters.serving import readers
from regraft.checkpoint.config import meta_model
from regraft.checkpoint.roles import roles, unknown
from regraft.checkpoint.source import Checkpoint
from regraft.checkpoint.tensor_file import TensorFile
from regraft.errors import CheckpointError, InputError
from regraft.input_files import read_json_object
from regraft.lowrank.effective_rank import effective_rank_of_factors
from regraft.records import GraftRecord, MergeRecord, read_record, to_json
from regraft.rope import ContextSpec, inverse_frequencies

_ROPE = ("rope_theta", "rope_parameters", "rope_scaling")


def open_any(source: str) -> Checkpoint | Adapter:
    """The model or adapter at a folder or Hub id; one that is both is a model.

    Raises CheckpointError for a folder that is neither, InputError for adapters that are no LoRA.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", CONFIG)):
            raise CheckpointError(
                f"{source} is neither a model (no config.json) nor an adapter (no "
                f"{CONFIG}); give a folder that holds one."
            )
        if not (folder / "config.json").is_file():
            return Adapter.open(source)
    try:
        return Checkpoint.open(source)
    except CheckpointError as no_model:
        try:
            return Adapter.open(source)
        except CheckpointError:
            raise no_model from None


def context_of(checkpoint: Checkpoint) -> tuple[ContextSpec | None, str]:
    """(context, its description), or (None, why there is none): no RoPE, or a config at odds."""
    config = checkpoint.config
    try:
        spec = ContextSpec.from_config(config)
    except CheckpointError as error:
        blocks = config, config.get("text_config") or {}
        named = any(key in block for key in _ROPE for block in blocks)
        return None, str(error) if named else "no RoPE in the config"
    return spec, spec.describe()


# A checkpoint.


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `inspect` says of a model; kind 'graft' or 'merge' if its regraft.json says so."""
    infos = checkpoint.tensors
    role_of = roles(checkpoint.config, infos)
    strangers = unknown(checkpoint.config, infos)
    text = meta_model(checkpoint.config).config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    hidden = getattr(text, "hidden_size", None)
    by_role: dict[str, dict[str, int]] = {}
    for name, info in infos.items():
        row = by_role.setdefault(role_of[name].kind, {"tensors": 0, "parameters": 0})
        row["tensors"] += 1
        row["parameters"] += math.prod(info.shape)
    skipped = set(strangers) | {name for name in infos if name.endswith("rotary_emb.inv_freq")}
    if checkpoint.tied:
        skipped |= {name for name in infos if role_of[name].kind == "head"}
    found: dict[str, Any] = {
        "kind": "checkpoint",
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "architecture": (checkpoint.config.get("architectures") or [None])[0],
        "model_type": checkpoint.config.get("model_type"),
        "parameters": sum(math.prod(i.shape) for n, i in infos.items() if n not in skipped),
        "bytes": checkpoint.total_bytes,
        "dtypes": dict(Counter(_dtype_name(info.dtype) for info in infos.values()).most_common()),
        "shards": len(checkpoint.shards),
        "layers": getattr(text, "num_hidden_layers", None),
        "hidden_size": hidden,
        "heads": heads,
        "kv_heads": getattr(text, "num_key_value_heads", None) or heads,
        "head_dim": getattr(text, "head_dim", None) or (hidden // heads if hidden and heads else 0),
        "vocabulary": getattr(text, "vocab_size", None),
        "tied": checkpoint.tied,
    }
    spec, text = context_of(checkpoint)
    found["context"] = _context(spec, found["head_dim"]) if spec else None
    found["context_text"] = text
    found["tokenizer_max_length"] = _tokenizer_length(checkpoint)
    # of a Hub model the fingerprint would download every shard
    found["fingerprint"] = None if checkpoint.revision else checkpoint.fingerprint()
    found["roles"] = by_role
    found["unknown_tensors"] = strangers
    return found | _origin(checkpoint)


def _context(spec: ContextSpec, head_dim: int) -> dict[str, Any]:
    wavelength = None
    if head_dim:
        try:
            turning = inverse_frequencies(spec, head_dim)[0]
            wavelength = 2 * math.pi / float(turning[turning > 0].min())
        except InputError:  # a family that this version has no formula for
            wavelength = None
    return {
        **spec.to_json(),
        "theta": spec.theta,
        "rope_type": spec.rope_type,
        "longest_wavelength": wavelength,
    }


def _tokenizer_length(checkpoint: Checkpoint) -> int | None:
    """The tokenizer's model_max_length, None if it states none (or transformers' 'no limit')."""
    path = checkpoint.file("tokenizer_config.json")
    if path is None:
        return None
    remedy = "copy the tokenizer again or delete the file"
    length = read_json_object(path, CheckpointError, remedy=remedy).get("model_max_length")
    return int(length) if isinstance(length, (int, float)) and 0 < length < 2**40 else None


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the regraft.json beside a model says it was made from."""
    path = checkpoint.file(RECORD)
    if path is None:
        return {}
    remedy = "copy the model again or delete the file"
    record = read_json_object(path, CheckpointError, remedy=remedy)
    try:
        kind = record["kind"]
        names: dict[str, Any]
        if kind == "graft":
            graft = read_record(path, GraftRecord, "copy the model again or delete the file")
            names = {"adapter": graft.adapter.name, "checkpoint": graft.checkpoint.name}
            lines = [*names.items(), *graft_summary(graft)]
        elif kind == "merge":
            merge = read_record(path, MergeRecord, "copy the model again or delete the file")
            names = {"method": merge.method, "inputs": [one.name for one in merge.inputs]}
            output = ContextSpec.from_record(merge.context.output)
            lines = [
                ("method", f"{merge.method} ({merge.engine})"),
                *(("of", name) for name in names["inputs"]),
                ("context", f"{output.describe()} ({merge.context.policy})"),
            ]
        else:
            return {}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not a record that this version of regraft reads "
            f"({type(error).__name__}: {error}); copy the model again or delete the file."
        ) from None
    made = {"versions": record.get("versions"), "lines": [list(line) for line in lines]}
    return {"kind": kind, "made": {**names, **made}}


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# An adapter.


def describe_adapter(adapter: Adapter) -> dict[str, Any]:
    """What `inspect` says of a PEFT LoRA, made by regraft or not."""
    modules = {name: _module(adapter, name) for name in adapter.modules}
    ranks = [fact["rank"] for fact in modules.values()]
    scalings = sorted({fact["scaling"] for fact in modules.values()})
    record, both = adapter.record, adapter.context
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
            "base": {**both[0].to_json(), "text": both[0].describe()},
            "extended": {**both[1].to_json(), "text": both[1].describe()},
        }
        if both
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


def squared_product(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> float:
    """<B A, B2 A2> = tr(B'B2 A2 A') in float64, no dense product."""
    (b, a), (b2, a2) = one, other
    left, right = b.double().T @ b2.double(), a.double() @ a2.double().T
    return float((left * right).sum())


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
            **spread("effective_rank", (fact["effective_rank"] for fact in members)),
        }
        for leaf, members in groups.items()
    }


def spread(key: str, values: Iterable[float]) -> dict[str, float]:
    """{key: mean, key_min, key_max}."""
    numbers = list(values)
    return {
        key: sum(numbers) / len(numbers), f"{key}_min": min(numbers), f"{key}_max": max(numbers)
    }  # fmt: skip


def _stored_dtypes(path: Path) -> dict[str, int]:
    with TensorFile(path) as file:
        names = [_dtype_name(info.dtype) for info in file.tensors.values()]
    return dict(Counter(names).most_common())


def _readers(adapter: Adapter, rank: int) -> dict[str, str]:
    """Which programs load the adapter as it stands, and what they leave out."""
    both = adapter.context
    return readers(
        rank=rank,
        uniform=not (adapter.config.rank_pattern or adapter.config.alpha_pattern),
        whole_tensors=len(adapter.replaced),
        differences=len(adapter.differences),
        length=both[1].max_position_embeddings if both and both[0] != both[1] else None,
    )
