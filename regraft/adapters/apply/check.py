"""`check_graft`: whether an adapter can be applied to a checkpoint, and with which context.

It changes and writes nothing; `regraft apply`, `inspect` and `evaluate` all use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from regraft import progress
from regraft.adapters import lineage
from regraft.adapters.apply.match import Match, match_changes, names_in_transformers, target_roles
from regraft.adapters.folder import RECORD
from regraft.adapters.reader import Adapter
from regraft.checkpoint.hf.roles import Role
from regraft.checkpoint.read.context import checkpoint_context
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError, InputError, LineageError
from regraft.records import BaseRecord, RelationRecord
from regraft.rope import ContextSpec, parse_context
from regraft.units import format_tokens

_PRESENT = 0.5  # share of the change above which a target may have it already
_SAME_CHANGE = 0.15  # distance of that share from 1 below which the target has the same change
_LARGE_SCALE = 2.0


@dataclass(frozen=True)
class Refusal:
    """Why `apply` refuses: an undecided context, an unrelated checkpoint ('stranger'), or one that
    has the change already ('present'). `--force` overrides the last two."""

    kind: Literal["context", "stranger", "present"]
    error: LineageError


@dataclass(frozen=True)
class Verdict:
    """What applying an adapter would do, and the reasons against it.

    context: of the output, None where it is undecided; policy: where it comes from: 'adapter',
    'checkpoint' or 'given'. base: of the adapter. relation: from that base to the checkpoint, None
    where the base is unknown. already_present: share of the change that the checkpoint has, None if
    unknown.
    """

    match: Match
    context: ContextSpec | None
    policy: str | None
    base: BaseRecord
    relation: RelationRecord | None
    already_present: float | None
    refusals: list[Refusal] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def raise_refusals(self, *, force: bool = False) -> None:
        """Raise the first refusal that `force` does not override."""
        for refusal in self.refusals:
            if refusal.kind == "context" or not force:
                raise refusal.error


def check_graft(
    lora: Adapter, target: Checkpoint, *, scale: float = 1.0, context: str | None = None
) -> Verdict:
    """What `apply_lora` would do with an adapter and a checkpoint. scale, context: as there.

    Raises CheckpointError where the adapter does not fit the checkpoint's tensors, InputError for a
    context or a scale that cannot be used. Other reasons are in `Verdict.refusals`.
    """
    roles = target_roles(lora, target)
    match = match_changes(lora, target, roles, scale)
    refusals: list[Refusal] = []
    warnings = list(match.warnings)
    spec: ContextSpec | None = None
    policy: str | None = None
    try:
        spec, policy = choose_context(lora, target, context, warnings)
    except LineageError as error:
        refusals.append(Refusal("context", error))
    base, sketches = base_of(lora), _sketches(lora, target, roles, warnings)
    relation = present = None
    if sketches is None:
        warnings.append(
            f"{lora.name} does not say what its base's weights were, so it cannot be checked "
            f"whether {target.name} is a relative."
        )
    else:
        relation = lineage.relate(*sketches)
        if relation.verdict == "stranger":
            refusal = _stranger(
                lora, target, base, relation, "a model made from that base, or --force"
            )
            refusals.append(Refusal("stranger", refusal))
        factors = ((c.key, *c.factors(lora)) for c in match.changes.values() if c.kind == "factors")
        present = lineage.present(sketches[0], sketches[1], factors)
        _judge_presence(lora, target, present, scale, refusals, warnings)
    if not 0 <= scale <= _LARGE_SCALE:
        warnings.append(
            f"--scale {scale:g} makes the change {scale:g} times what the adapter was made for; "
            "the model may be of no use: evaluate it, or use a scale between 0 and 1."
        )
    return Verdict(match, spec, policy, base, relation, present, refusals, warnings)


def choose_context(
    lora: Adapter, target: Checkpoint, requested: str | None, warnings: list[str]
) -> tuple[ContextSpec, str]:
    """(the output's context, where it comes from). requested: as `context` of `apply_lora`.

    Values that `requested` leaves out are those of the adapter's extended model, or the target's
    where the adapter carries no context. A length is never reduced unless it is requested. Raises
    LineageError where the context is undecided.
    """
    own = checkpoint_context(target)
    if requested == "checkpoint":
        return own, "checkpoint"
    if requested not in (None, "adapter"):
        start = lora.context[1] if lora.context else own
        if "length" not in str(requested) and start.rope_type != "dynamic":
            start = _at_least(start, own.max_position_embeddings)
        return parse_context(str(requested), start), "given"
    if lora.context is None:
        if requested == "adapter":
            raise InputError(
                f"{lora.name} carries no context (no {RECORD}); give --context theta=..,"
                "length=.. or --context checkpoint."
            )
        warnings.append(
            f"{lora.name} carries no context, so the output keeps {own.describe()}; if it was made "
            "for a longer one, give --context theta=..,length=.."
        )
        return own, "checkpoint"
    before, after = lora.context
    if requested == "adapter" or own == after:
        return after, "adapter"
    merged = merged_context(own, before, after)
    if merged is None:
        raise LineageError(
            f"{target.name} has context {own.describe()}, the adapter takes {before.describe()} to "
            f"{after.describe()}; say which to use: --context adapter, --context checkpoint or "
            "--context theta=..,length=.."
        )
    if merged != own:
        return merged, "adapter"
    if after.max_position_embeddings < own.max_position_embeddings and before != after:
        warnings.append(
            f"{lora.name} was trained on {format_tokens(after.max_position_embeddings)} tokens and "
            f"{target.name} keeps its context of {format_tokens(own.max_position_embeddings)}; "
            "--context adapter shortens it."
        )
    return own, "checkpoint"


def merged_context(own: ContextSpec, before: ContextSpec, after: ContextSpec) -> ContextSpec | None:
    """The context of a model that has `own`, with an adapter that takes `before` to `after`.

    None where the user has to decide. An adapter of the same RoPE and a shorter length was trained
    on short text, which leaves the context as it is.
    """
    if own == after:
        return after
    shorter = after.max_position_embeddings < own.max_position_embeddings
    if shorter and after.rope_parameters == own.rope_parameters:
        return own
    if own == before:
        return None if shorter else after
    return own if before == after else None


def _at_least(spec: ContextSpec, length: int) -> ContextSpec:
    if spec.max_position_embeddings >= length:
        return spec
    return ContextSpec(spec.rope_parameters, length, spec.original_max_position_embeddings)


def base_of(lora: Adapter) -> BaseRecord:
    """The adapter's base, as its record or else its config names it."""
    if lora.record is None:
        return BaseRecord(name=lora.config.base_model_name_or_path or None)
    own = lora.record.base
    return BaseRecord(name=own.name, revision=own.revision, fingerprint=own.fingerprint)


def relate_to_base(
    lora: Adapter, target: Checkpoint, roles: Mapping[str, Role]
) -> RelationRecord | None:
    """The distance from the adapter's base to the target, None where that base is unknown.

    Raises LineageError for a stranger.
    """
    warnings: list[str] = []
    sketches = _sketches(lora, target, roles, warnings)
    for text in warnings:
        progress.warn(text)
    if sketches is None:
        return None
    relation = lineage.relate(*sketches)
    if relation.verdict == "stranger":
        raise _stranger(lora, target, base_of(lora), relation, "a model made from that base")
    return relation


def _stranger(
    lora: Adapter, target: Checkpoint, base: BaseRecord, relation: RelationRecord, remedy: str
) -> LineageError:
    return LineageError(
        f"{target.name} is no relative of {base.name}, the base of {lora.name}: "
        f"{lineage.describe(relation)}; give {remedy}."
    )


def _judge_presence(
    lora: Adapter,
    target: Checkpoint,
    present: float,
    scale: float,
    refusals: list[Refusal],
    warnings: list[str],
) -> None:
    """Add a refusal or a warning where the target seems to have the change already.

    A model trained on similar text moves along the change, too, so the share alone proves nothing.
    It is a refusal where the target has the adapter's new context as well or, for an adapter that
    changes no context, where the share is close to 1.
    """
    if present <= _PRESENT or scale <= 0:
        return
    before, after = lora.context or (None, None)
    certain = (
        abs(present - 1) < _SAME_CHANGE
        if before == after
        else ContextSpec.from_config(target.config) == after
    )
    text = f"{target.name} already has {present:.0%} of the change that {lora.name} makes"
    if certain:
        error = LineageError(f"{text}; give a checkpoint without it, or --force.")
        refusals.append(Refusal("present", error))
    else:
        warnings.append(f"{text}: it was trained on something alike, or has the change in it.")


def _sketches(
    lora: Adapter, target: Checkpoint, roles: Mapping[str, Role], warnings: list[str]
) -> tuple[lineage.Sketch, lineage.Sketch, dict[str, Role]] | None:
    """(samples of the adapter's base, samples of the target, roles), all by the base's names."""
    samples = lora.lineage() or _samples(lora.config.base_model_name_or_path or "", warnings)
    if samples is None:
        return None
    names, sketch = names_in_transformers(roles), lineage.sketch(target)
    own = {name: name if name in sketch else names.get(name, "") for name in samples}
    shared = {name: target_name for name, target_name in own.items() if target_name in sketch}
    return (
        samples,
        {name: sketch[target_name] for name, target_name in shared.items()},
        {name: roles[target_name] for name, target_name in shared.items()},
    )


def _samples(base: str, warnings: list[str]) -> dict[str, Tensor] | None:
    """Sampled weights of the base that a plain adapter names, if it is a local folder."""
    if not base or not Path(base).is_dir():
        return None
    try:
        with Checkpoint.open(base) as original:
            return lineage.sketch(original)
    except CheckpointError as error:
        warnings.append(f"The adapter's base cannot be read: {error}")
        return None
