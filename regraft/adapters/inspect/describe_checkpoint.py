"""Description of one model: sizes, context, tensors by role, and what regraft made it from.

Reads headers, the config and the record; of a local checkpoint also 1024 weights of each tensor
(for its fingerprint).
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from regraft.adapters.apply.apply import summary as graft_summary
from regraft.adapters.folder import RECORD
from regraft.adapters.inspect.figures import dtype_name
from regraft.checkpoint.config import meta_model
from regraft.checkpoint.hf.roles import tensor_roles, unknown_tensors
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError, InputError
from regraft.input_files import read_json_object
from regraft.records import GraftRecord, MergeRecord, read_record
from regraft.rope import ContextSpec, inverse_frequencies

_ROPE_KEYS = ("rope_theta", "rope_parameters", "rope_scaling")


def context_of(checkpoint: Checkpoint) -> tuple[ContextSpec | None, str]:
    """Return (context, its description), or (None, the reason): no RoPE, or a contradictory
    config."""
    config = checkpoint.config
    try:
        spec = ContextSpec.from_config(config)
    except CheckpointError as error:
        blocks = config, config.get("text_config") or {}
        states_rope = any(key in block for key in _ROPE_KEYS for block in blocks)
        return None, str(error) if states_rope else "no RoPE in the config"
    return spec, spec.describe()


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Describe a model; `kind` is 'graft' or 'merge' if its regraft.json states it."""
    infos = checkpoint.tensors
    role_of = tensor_roles(checkpoint.config, infos)
    not_in_model = unknown_tensors(checkpoint.config, infos)
    text = meta_model(checkpoint.config).config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    hidden = getattr(text, "hidden_size", None)
    by_role: dict[str, dict[str, int]] = {}
    for name, info in infos.items():
        row = by_role.setdefault(role_of[name].kind, {"tensors": 0, "parameters": 0})
        row["tensors"] += 1
        row["parameters"] += math.prod(info.shape)
    skipped = set(not_in_model) | {name for name in infos if name.endswith("rotary_emb.inv_freq")}
    if checkpoint.tied:
        skipped |= {name for name in infos if role_of[name].kind == "head"}
    description: dict[str, Any] = {
        "kind": "checkpoint",
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "architecture": (checkpoint.config.get("architectures") or [None])[0],
        "model_type": checkpoint.config.get("model_type"),
        "parameters": sum(math.prod(i.shape) for n, i in infos.items() if n not in skipped),
        "bytes": checkpoint.total_bytes,
        "dtypes": dict(Counter(dtype_name(info.dtype) for info in infos.values()).most_common()),
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
    description["context"] = _context(spec, description["head_dim"]) if spec else None
    description["context_text"] = text
    description["tokenizer_max_length"] = _tokenizer_length(checkpoint)
    # the fingerprint of a Hub model would download every shard
    description["fingerprint"] = None if checkpoint.revision else checkpoint.fingerprint()
    description["roles"] = by_role
    description["unknown_tensors"] = not_in_model
    return description | _origin(checkpoint)


def _context(spec: ContextSpec, head_dim: int) -> dict[str, Any]:
    wavelength = None
    if head_dim:
        try:
            frequencies = inverse_frequencies(spec, head_dim)[0]
            wavelength = 2 * math.pi / float(frequencies[frequencies > 0].min())
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
    """What the model was made from, according to the regraft.json beside it."""
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
            names = {"method": merge.method, "inputs": [item.name for item in merge.inputs]}
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
    origin = {"versions": record.get("versions"), "lines": [list(line) for line in lines]}
    return {"kind": kind, "made": {**names, **origin}}
