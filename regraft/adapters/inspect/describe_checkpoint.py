"""Description of one model: sizes, context, tensors by role, and what regraft made it from.

Reads headers, the config and the record; of a local checkpoint also 1024 weights of each tensor
(for its fingerprint).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from regraft.adapters.apply.apply import summary as graft_summary
from regraft.adapters.folder import RECORD
from regraft.adapters.inspect.descriptions import (
    CheckpointContext,
    CheckpointDescription,
    GraftOrigin,
    MergeOrigin,
    RoleSize,
)
from regraft.checkpoint.config import architecture_of, meta_model
from regraft.checkpoint.dtypes import dtype_name
from regraft.checkpoint.hf.roles import Role, tensor_roles, unknown_tensors
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError, InputError
from regraft.input_files import read_json_object
from regraft.records import GraftRecord, MergeRecord, read_record
from regraft.rope import ContextSpec, inverse_frequencies
from regraft.rope.spelling import text_model

_REMEDY = "copy the model again or delete the file"  # for a broken regraft.json
_ROPE_KEYS = ("rope_theta", "rope_parameters", "rope_scaling")


def context_or_reason(checkpoint: Checkpoint) -> tuple[ContextSpec | None, str]:
    """(context, its description), or (None, the reason): no RoPE, or a contradictory config."""
    config = checkpoint.config
    try:
        spec = ContextSpec.from_config(config)
    except CheckpointError as error:
        blocks = config, text_model(config)[1]
        states_rope = any(key in block for key in _ROPE_KEYS for block in blocks)
        return None, str(error) if states_rope else "no RoPE in the config"
    return spec, spec.describe()


def describe_checkpoint(checkpoint: Checkpoint) -> CheckpointDescription:
    """The description of a model, with what regraft made it from where its regraft.json says so."""
    infos = checkpoint.tensors
    role_of = tensor_roles(checkpoint.config, infos)
    not_in_model = unknown_tensors(checkpoint.config, infos)
    text = meta_model(checkpoint.config).config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    hidden = getattr(text, "hidden_size", None)
    head_dim = getattr(text, "head_dim", None) or (hidden // heads if hidden and heads else 0)
    skipped = set(not_in_model) | {name for name in infos if name.endswith("rotary_emb.inv_freq")}
    if checkpoint.tied:
        skipped |= {name for name in infos if role_of[name].kind == "head"}
    spec, context_text = context_or_reason(checkpoint)
    made = _origin(checkpoint)
    kinds: dict[type, Literal["graft", "merge"]] = {GraftOrigin: "graft", MergeOrigin: "merge"}
    return CheckpointDescription(
        kind=kinds.get(type(made), "checkpoint"),
        name=checkpoint.name,
        revision=checkpoint.revision,
        architecture=architecture_of(checkpoint.config),
        model_type=checkpoint.config.get("model_type"),
        parameters=sum(math.prod(i.shape) for n, i in infos.items() if n not in skipped),
        bytes=checkpoint.total_bytes,
        dtypes=dict(Counter(dtype_name(info.dtype) for info in infos.values()).most_common()),
        shards=len(checkpoint.shards),
        layers=getattr(text, "num_hidden_layers", None),
        hidden_size=hidden,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        vocabulary=getattr(text, "vocab_size", None),
        tied=checkpoint.tied,
        context=_context(spec, head_dim) if spec else None,
        context_text=context_text,
        tokenizer_max_length=_tokenizer_length(checkpoint),
        # the fingerprint of a Hub model would download every shard
        fingerprint=None if checkpoint.revision else checkpoint.fingerprint(),
        roles=_by_role(checkpoint, role_of),
        unknown_tensors=not_in_model,
        made=made,
    )


def _by_role(checkpoint: Checkpoint, role_of: Mapping[str, Role]) -> dict[str, RoleSize]:
    sizes: dict[str, list[int]] = {}
    for name, info in checkpoint.tensors.items():
        sizes.setdefault(role_of[name].kind, []).append(math.prod(info.shape))
    return {
        kind: RoleSize(tensors=len(members), parameters=sum(members))
        for kind, members in sizes.items()
    }


def _context(spec: ContextSpec, head_dim: int) -> CheckpointContext:
    wavelength = None
    if head_dim:
        try:
            frequencies = inverse_frequencies(spec, head_dim)[0]
            wavelength = 2 * math.pi / float(frequencies[frequencies > 0].min())
        except InputError:  # a family that this version has no formula for
            wavelength = None
    return CheckpointContext(
        **spec.to_json(), theta=spec.theta, rope_type=spec.rope_type, longest_wavelength=wavelength
    )


def _tokenizer_length(checkpoint: Checkpoint) -> int | None:
    """The tokenizer's model_max_length, None if it states none (or transformers' 'no limit')."""
    path = checkpoint.file("tokenizer_config.json")
    if path is None:
        return None
    settings = read_json_object(
        path, CheckpointError, remedy="copy the tokenizer again or delete the file"
    )
    length = settings.get("model_max_length")
    return int(length) if isinstance(length, (int, float)) and 0 < length < 2**40 else None


def _origin(checkpoint: Checkpoint) -> GraftOrigin | MergeOrigin | None:
    """What the model was made from, according to the regraft.json beside it.

    Raises CheckpointError where that file is not a record that this version reads.
    """
    path = checkpoint.file(RECORD)
    if path is None:
        return None
    record = read_json_object(path, CheckpointError, remedy=_REMEDY)
    try:
        if record["kind"] == "graft":
            return _graft_origin(read_record(path, GraftRecord, _REMEDY))
        if record["kind"] == "merge":
            return _merge_origin(read_record(path, MergeRecord, _REMEDY))
    except (ValueError, KeyError, TypeError) as error:  # of the kind, or of odd RoPE parameters
        raise CheckpointError(
            f"{path} is not a record that this version of regraft reads "
            f"({type(error).__name__}: {error}); {_REMEDY}."
        ) from None
    return None


def _graft_origin(graft: GraftRecord) -> GraftOrigin:
    adapter, checkpoint = graft.adapter.name, graft.checkpoint.name
    lines = [("adapter", adapter), ("checkpoint", checkpoint), *graft_summary(graft)]
    return GraftOrigin(adapter=adapter, checkpoint=checkpoint, versions=graft.versions, lines=lines)


def _merge_origin(merge: MergeRecord) -> MergeOrigin:
    inputs = [item.name for item in merge.inputs]
    output = ContextSpec.from_record(merge.context.output)
    lines = [
        ("method", f"{merge.method} ({merge.engine})"),
        *(("of", name) for name in inputs),
        ("context", f"{output.describe()} ({merge.context.policy})"),
    ]
    return MergeOrigin(method=merge.method, inputs=inputs, versions=merge.versions, lines=lines)
