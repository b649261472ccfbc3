"""Which tensors of two checkpoints to extract, and whether the two belong together.

Headers, configs and sampled weights decide it, before any long work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from regraft.adapters import lineage
from regraft.checkpoint.dtypes import FLOAT_DTYPES
from regraft.checkpoint.hf.roles import Role, checkpoint_roles
from regraft.checkpoint.read.source import Checkpoint
from regraft.device import fast_bfloat16
from regraft.errors import CheckpointError, InputError, LineageError
from regraft.lowrank.rank import RankRule, uniform_rank
from regraft.records import Layout, RelationRecord
from regraft.rope import ContextSpec

_COMMA = r",(?![^{}]*\})"  # not the comma of a regex's {1,2}


@dataclass(frozen=True)
class Module:
    """One matrix to extract. name: of the module; shape: of the rows that both models have; layer:
    that it is in, None outside the layers."""

    name: str
    tensor: str
    kind: Literal["linear", "embedding"]
    shape: tuple[int, int]
    layer: int | None = None


@dataclass(frozen=True)
class Plan:
    """What an extraction will do. rest: tensors of both models that are not factorised; bytes as
    estimated; notes: sentences on what the adapter will not hold."""

    modules: list[Module]
    rest: list[str]
    rule: RankRule
    layout: Layout
    read_bytes: int
    write_bytes: int
    peak_bytes: int
    notes: list[str] = field(default_factory=list)


def make_plan(
    b: Checkpoint,
    e: Checkpoint,
    role_of: Mapping[str, Role],
    rule: RankRule,
    layout: Layout,
    selector: str,
    dtype: torch.dtype,
) -> Plan:
    """The plan of an extraction.

    b, e: base and extended model; selector: --modules; dtype: of the stored factors. Raises
    CheckpointError where the models are of different architectures, InputError where the selector
    names no matrix.
    """
    names = _common_tensors(b, e, role_of)
    chosen = _select(selector, names, role_of, b)
    modules = []
    for name in chosen:
        role, shape = role_of[name], shared_shape(b, e, name)
        modules.append(
            Module(
                role.module,
                name,
                "embedding" if role.kind == "embedding" else "linear",
                (shape[0], shape[1]),
                role.layer,
            )
        )
    factorised = {module.tensor for module in modules}
    if rule.budget is not None and layout == "portable":
        rank = uniform_rank([m.shape for m in modules], rule.budget, dtype.itemsize)
        rule = replace(rule, budget=None, rank=min(rank, rule.cap or rank))
    expected_rank = rule.rank or 64
    factors = sum(sum(m.shape) * min(expected_rank, *m.shape) for m in modules)
    largest = max(m.shape[0] * m.shape[1] for m in modules)
    return Plan(
        modules=modules,
        rest=[name for name in names if name not in factorised],
        rule=rule,
        layout=layout,
        read_bytes=sum(b.tensors[n].nbytes + e.tensors[n].nbytes for n in names),
        write_bytes=rule.budget or factors * dtype.itemsize,
        peak_bytes=largest * (6 if fast_bfloat16(torch.device("cpu")) else 4) + (600 << 20),
        notes=_note_untied_head(b, e) + _note_extra_tensors(b, e),
    )


def _common_tensors(b: Checkpoint, e: Checkpoint, role_of: Mapping[str, Role]) -> list[str]:
    """Floating-point tensors of both models, in the base's order.

    Raises CheckpointError naming a tensor that only one of them has, or whose shapes differ.
    """
    if b.config.get("model_type") != e.config.get("model_type"):
        raise CheckpointError(
            f"{b.name} is a {b.config.get('model_type')} model and {e.name} a "
            f"{e.config.get('model_type')} model; the extended model must be made from the base."
        )
    names = []
    for name, info in b.tensors.items():
        role = role_of[name]
        if role.kind == "head" and e.tied and (b.tied or name not in e.tensors):
            continue  # it is the embedding, or missing
        if name.endswith("rotary_emb.inv_freq"):
            continue  # old checkpoints store the frequencies that the config gives
        if role.kind == "other" and not (
            name in e.tensors
            and info.dtype.is_floating_point
            and info.shape == e.tensors[name].shape
        ):
            continue
        if name not in e.tensors:
            raise CheckpointError(
                f"{e.name} lacks tensor '{name}' of {b.name}; give the model that was made from it."
            )
        other = e.tensors[name]
        same = info.shape == other.shape
        rows_only = role.kind in ("embedding", "head") and info.shape[1:] == other.shape[1:]
        if not (same or rows_only):
            raise CheckpointError(
                f"Tensor '{name}' is {list(info.shape)} in {b.name} and {list(other.shape)} in "
                f"{e.name}; the extended model must be made from the base."
            )
        for model, dtype in ((b, info.dtype), (e, other.dtype)):
            if dtype not in FLOAT_DTYPES:
                raise CheckpointError(
                    f"Tensor '{name}' of {model.name} is stored as {dtype}; give a checkpoint that "
                    "is not quantised."
                )
        names.append(name)
    extra = [name for name in e.tensors if name not in b.tensors]
    own = checkpoint_roles(e, extra) if extra else {}
    for name, role in own.items():
        if role.kind != "other" and not (role.kind == "head" and b.tied):
            raise CheckpointError(
                f"{e.name} has tensor '{name}', which {b.name} lacks; the extended model must be "
                "made from the base."
            )
    return names


def _note_extra_tensors(b: Checkpoint, e: Checkpoint) -> list[str]:
    """A note on tensors that only the extended model has and its model class has not."""
    names = [
        name
        for name in e.tensors
        if name not in b.tensors and not name.endswith("rotary_emb.inv_freq")
    ]
    if e.tied != b.tied:  # `_note_untied_head` is about the head
        names = [name for name in names if "head" not in name]
    if not names:
        return []
    return [
        f"{e.name} has {len(names)} tensors that {b.name} lacks, '{names[0]}' first: they are not "
        "in the adapter."
    ]


def _note_untied_head(b: Checkpoint, e: Checkpoint) -> list[str]:
    """A note where the head is the embedding in one model and not in the other."""
    if b.tied == e.tied:
        return []
    own, shared = (e, b) if b.tied else (b, e)
    return [
        f"{own.name} has a head of its own and {shared.name} uses its embedding: what changed in "
        "the head is not in the adapter."
    ]


def shared_shape(b: Checkpoint, e: Checkpoint, name: str) -> tuple[int, ...]:
    """The shape of the rows that both models have; one may have embeddings of added tokens."""
    one, other = b.tensors[name].shape, e.tensors[name].shape
    return (min(one[0], other[0]), *one[1:]) if one else one


def _select(
    selector: str, names: list[str], role_of: Mapping[str, Role], b: Checkpoint
) -> list[str]:
    """Tensors whose module the selector names. Raises InputError where a part of it names none."""
    matrices = {
        name: role_of[name]
        for name in names
        if role_of[name].kind in ("projection", "embedding", "head")
        and len(b.tensors[name].shape) == 2
    }
    chosen: set[str] = set()
    for part in (part.strip() for part in re.split(_COMMA, selector)):
        matches = {name for name, role in matrices.items() if _matches(part, role)}
        if not matches:
            leaves = sorted({role.leaf for role in matrices.values()})
            raise InputError(
                f"--modules '{part}' names no matrix of {b.name}; give all-linear, attention, mlp, "
                f"a regex of module names, or some of {', '.join(leaves)}."
            )
        chosen |= matches
    if b.tied and any(role_of[name].kind == "head" for name in chosen):
        raise InputError(
            f"--modules names the head of {b.name}, which is tied to the embedding; name the "
            "embedding instead."
        )
    return [name for name in names if name in chosen]


def _matches(part: str, role: Role) -> bool:
    if part == "all-linear":
        return role.kind == "projection"
    if part == "attention":
        return role.kind == "projection" and "attn" in role.block
    if part == "mlp":
        return role.kind == "projection" and "mlp" in role.block
    try:
        return part == role.leaf or re.fullmatch(part, role.module) is not None
    except re.error as error:
        raise InputError(f"--modules '{part}' is not a regular expression ({error}).") from None


def check_lineage(
    b: Checkpoint,
    e: Checkpoint,
    role_of: Mapping[str, Role],
    contexts: tuple[ContextSpec, ContextSpec],
    force: bool,
) -> RelationRecord:
    """How the two models are related.

    Raises InputError where their weights are the same; without `force`, LineageError where they are
    unrelated or the base has the longer context.
    """
    relation = lineage.relate(lineage.sketch(b), lineage.sketch(e), role_of)
    before, after = contexts
    if relation.verdict == "same" and b.fingerprint(full=True) == e.fingerprint(full=True):
        raise InputError(
            f"{b.name} and {e.name} hold the same weights; give the base and the extended model."
        )
    if force:
        return relation
    if relation.verdict == "stranger":
        raise LineageError(
            f"{e.name} was not made from {b.name}: {lineage.describe(relation)}; give its real "
            "base, or --force."
        )
    shorter = after.max_position_embeddings < before.max_position_embeddings
    if shorter or (
        after.max_position_embeddings == before.max_position_embeddings
        and after.theta < before.theta
    ):
        raise LineageError(
            f"BASE {b.name} has the longer context ({before.describe()}) and EXTENDED {e.name} the "
            f"shorter ({after.describe()}); swap them, or give --force."
        )
    return relation
