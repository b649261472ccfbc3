"""Before any work: does an adapter fit a checkpoint, whose context is it to be, are they relatives.

Nothing here reads more of the checkpoint than its headers and the lineage's samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from regraft import progress
from regraft.adapters import lineage
from regraft.adapters.extract.select import context_of, roles_of
from regraft.adapters.folder import RECORD
from regraft.adapters.reader import Adapter
from regraft.checkpoint.header import FLOAT_DTYPES
from regraft.checkpoint.roles import Role
from regraft.checkpoint.source import Checkpoint
from regraft.errors import CheckpointError, InputError, LineageError
from regraft.record import BaseRecord, RelationRecord
from regraft.rope import ContextSpec, parse_context

_PRESENT = 0.5  # share of the change beyond which a target may have it already
_VERY_CHANGE = 0.15  # distance of the share from 1 at which it is the very change


@dataclass(frozen=True)
class Change:
    """What happens to one tensor of the target: 'factors', 'difference' or 'replacement'."""

    tensor: str
    kind: str
    key: str  # the adapter's name for it
    rows: int  # leading rows of the target that change
    role: str


def target_roles(lora: Adapter, target: Checkpoint) -> dict[str, Role]:
    """What each tensor of the target is: the adapter knows where the names are its base's, so that
    transformers (two seconds of imports) is only asked about other spellings and architectures."""
    known = lora.roles()
    same = (
        lora.record is not None and target.config.get("model_type") == lora.record.base.model_type
    )
    if known is not None and same and target.tensors.keys() <= known.keys():
        return {name: known[name] for name in target.tensors}
    return roles_of(target)


def match_changes(
    lora: Adapter, target: Checkpoint, role_of: dict[str, Role], scale: float
) -> dict[str, Change]:
    """Tensor of the target -> what happens to it. Raises where the adapter does not fit."""
    if lora.replaced and scale != 1.0:
        raise InputError(
            f"{lora.name} replaces whole tensors (modules_to_save), which --scale {scale} cannot "
            "scale; use --scale 1."
        )
    home = _homes(role_of)
    wanted = (
        [("factors", key) for key in lora.modules]
        + [("difference", key) for key in lora.differences]
        + [("replacement", key) for key in lora.replaced]
    )
    changes: dict[str, Change] = {}
    for kind, key in wanted:
        name = key if key in target.tensors else home.get(key)
        if name is None or (target.tied and role_of[name].kind == "head"):
            tied = " (it is tied to the embedding there)" if target.tied and "head" in key else ""
            raise CheckpointError(
                f"{target.name} has no tensor '{key}'{tied}, which {lora.name} changes; give a "
                "checkpoint of the adapter's architecture."
            )
        info = target.tensors[name]
        if kind == "factors":
            if role_of[name].kind in ("projection", "head"):
                lora.ignore_fan_in_fan_out(key)
            shape: tuple[int, ...] = lora.shape(key)
        elif kind == "difference":
            shape = lora.difference_shape(key)
        else:
            shape = lora.replacement_shape(key)
        rows_only = role_of[name].kind in ("embedding", "head") and kind != "replacement"
        fits = shape == info.shape or (
            rows_only and shape[1:] == info.shape[1:] and shape[0] <= info.shape[0]
        )
        if not fits:
            raise CheckpointError(
                f"Tensor '{name}' of {target.name} is {list(info.shape)} and {lora.name} changes "
                f"one of {list(shape)}; give a checkpoint of the adapter's architecture."
            )
        if info.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"Tensor '{name}' of {target.name} is stored as {info.dtype}; give a checkpoint "
                "that is not quantised."
            )
        if name in changes:
            raise CheckpointError(f"{lora.name} changes '{name}' twice; make the adapter again.")
        changes[name] = Change(name, kind, key, shape[0] if shape else 1, role_of[name].kind)
    return changes | _tied_heads(target, role_of, changes)


def _homes(role_of: dict[str, Role]) -> dict[str, str]:
    """The model's own name of each weight and bias -> the target's, which may be spelled without
    `model.` or otherwise."""
    kinds = {name: "bias" if role.kind == "bias" else "weight" for name, role in role_of.items()}
    return {f"{role_of[name].module}.{kind}": name for name, kind in kinds.items()}


def _tied_heads(
    target: Checkpoint, role_of: dict[str, Role], changes: dict[str, Change]
) -> dict[str, Change]:
    """The embedding's change for a head that is stored although it is the embedding."""
    if not target.tied:
        return {}
    return {
        head: replace(change, tensor=head, role="head")
        for head in (name for name, role in role_of.items() if role.kind == "head")
        for name, change in changes.items()
        if change.role == "embedding" and target.tensors[name].shape == target.tensors[head].shape
    }


def choose_context(
    lora: Adapter, target: Checkpoint, wanted: str | None
) -> tuple[ContextSpec, str]:
    """The output's context and where it is from. What `wanted` leaves open is as the adapter was
    trained, or the target's where it carries no context. Raises LineageError if nobody decided."""
    own = context_of(target)
    if wanted == "checkpoint":
        return own, "checkpoint"
    if wanted not in (None, "adapter"):
        return parse_context(str(wanted), lora.context[1] if lora.context else own), "given"
    if lora.context is None:
        if wanted == "adapter":
            raise InputError(
                f"{lora.name} carries no context (no {RECORD}); give --context theta=..,"
                "length=.. or --context checkpoint."
            )
        progress.warn(
            f"{lora.name} carries no context, so the output keeps {own.describe()}; if it was made "
            "for a longer one, give --context theta=..,length=.."
        )
        return own, "checkpoint"
    before, after = lora.context
    if wanted == "adapter" or own in (before, after):
        return after, "adapter"
    if before == after:
        return own, "checkpoint"
    raise LineageError(
        f"{target.name} has context {own.describe()}, the adapter takes {before.describe()} to "
        f"{after.describe()}; say which to use: --context adapter, --context checkpoint or "
        "--context theta=..,length=.."
    )


def check_kinship(
    lora: Adapter, target: Checkpoint, role_of: dict[str, Role], force: bool
) -> tuple[RelationRecord | None, BaseRecord]:
    """The distance from the adapter's base to the target, and what is known of that base."""
    named = str(lora.config.get("base_model_name_or_path") or "")
    base = BaseRecord(name=named or None)
    if lora.record:
        own = lora.record.base
        base = BaseRecord(name=own.name, revision=own.revision, fingerprint=own.fingerprint)
    sketches = _sketches(lora, target, role_of)
    if sketches is None:
        progress.warn(
            f"{lora.name} does not say what its base's weights were, so it cannot be checked "
            f"whether {target.name} is a relative."
        )
        return None, base
    relation = lineage.relate(*sketches)
    if relation.verdict == "stranger" and not force:
        raise LineageError(
            f"{target.name} is no relative of {base.name}, the base of {lora.name}: "
            f"{lineage.describe(relation)}; give a model made from that base, or --force."
        )
    return relation, base


def _sketches(
    lora: Adapter, target: Checkpoint, role_of: dict[str, Role]
) -> tuple[lineage.Sketch, lineage.Sketch, dict[str, Role]] | None:
    """Samples of the adapter's base and of the target, and roles, under the base's names."""
    samples = lora.lineage() or _samples(str(lora.config.get("base_model_name_or_path") or ""))
    if samples is None:
        return None
    home, here = _homes(role_of), lineage.sketch(target)
    own = {name: name if name in here else home.get(name, "") for name in samples}
    known = {name: there for name, there in own.items() if there in here}
    return (
        samples,
        {name: here[there] for name, there in known.items()},
        {name: role_of[there] for name, there in known.items()},
    )


def _samples(base: str) -> dict[str, Tensor] | None:
    """Sampled weights of the base that a plain adapter names, if that is a model at hand."""
    if not base or not Path(base).is_dir():
        return None
    try:
        with Checkpoint.open(base) as original:
            return lineage.sketch(original)
    except CheckpointError as error:
        progress.warn(f"The adapter's base cannot be read: {error}")
        return None


def check_absent(
    lora: Adapter,
    target: Checkpoint,
    role_of: dict[str, Role],
    changes: dict[str, Change],
    scale: float,
    force: bool,
) -> float | None:
    """How much of the change the target has already, if that can be known.

    A model trained on like text moves along the change too, so the share alone proves nothing: it
    is refused where the target has the adapter's new context as well, or, for an adapter that
    changes no context, where the share is that of the very change. Else it is a warning.
    """
    sketches = _sketches(lora, target, role_of)
    if sketches is None:
        return None
    factors = ((c.key, *lora.factors(c.key)) for c in changes.values() if c.kind == "factors")
    present = lineage.present(sketches[0], sketches[1], factors)
    before, after = lora.context or (None, None)
    certain = (
        abs(present - 1) < _VERY_CHANGE
        if before == after
        else ContextSpec.from_config(target.config) == after
    )
    if present > _PRESENT and scale > 0 and not force:
        found = f"{target.name} already has {present:.0%} of the change that {lora.name} makes"
        if certain:
            raise LineageError(f"{found}; give a checkpoint without it, or --force.")
        progress.warn(f"{found}: it was trained on something alike, or has the change in it.")
    return present
