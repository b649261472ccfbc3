"""Which tensors of a checkpoint an adapter changes, and how.

Only headers of the checkpoint are read. A head that is tied to the embedding may have to be untied:
PEFT replaces one of the two (modules_to_save) and leaves the other as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from regraft.adapters.reader import Adapter
from regraft.checkpoint.dtypes import FLOAT_DTYPES
from regraft.checkpoint.hf.roles import Role, checkpoint_roles
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError, InputError

HEAD = "lm_head.weight"  # the name of a head that a tied model does not store


@dataclass(frozen=True)
class Change:
    """The change of one tensor of the target.

    kind: 'factors', 'difference' or 'replacement'. key: the adapter's name for the tensor. rows:
    number of leading rows that change. linear: the tensor is the weight of an nn.Linear.
    """

    tensor: str
    kind: str
    key: str
    rows: int
    role: str
    linear: bool = False

    def factors(self, lora: Adapter) -> tuple[Tensor, Tensor]:
        """(B, A) of a change of kind 'factors', with the scaling in B."""
        return lora.factors(self.key, linear=self.linear)


@dataclass(frozen=True)
class Match:
    """All changes, by tensor of the target.

    untied_head: name of the head that the output needs where it was tied; it starts as the tensor
    `embedding`. None where nothing is untied.
    """

    changes: dict[str, Change]
    embedding: str | None = None
    untied_head: str | None = None
    warnings: list[str] = field(default_factory=list)


def target_roles(lora: Adapter, target: Checkpoint) -> dict[str, Role]:
    """Role of each tensor of the target.

    They are in the adapter if the target has the names of its base; else the model class is built,
    whose import takes two seconds.
    """
    known = lora.roles()
    same = (
        lora.record is not None and target.config.get("model_type") == lora.record.base.model_type
    )
    if known is not None and same and target.tensors.keys() <= known.keys():
        return {name: known[name] for name in target.tensors}
    return checkpoint_roles(target)


def match_changes(
    lora: Adapter, target: Checkpoint, roles: Mapping[str, Role], scale: float
) -> Match:
    """The changes that the adapter makes to the target.

    Raises CheckpointError where it does not fit, InputError for a scale other than 1 where it
    replaces tensors.
    """
    if lora.replaced and scale != 1.0:
        raise InputError(
            f"{lora.name} replaces whole tensors (modules_to_save), which --scale {scale} cannot "
            "scale; use --scale 1."
        )
    names = names_in_transformers(roles)
    kinds = {name: role.kind for name, role in roles.items()}
    embedding = next((name for name, kind in kinds.items() if kind == "embedding"), None)
    twins = _equal_twins(lora) if target.tied else set()
    changes: dict[str, Change] = {}
    untied_head = None
    for kind, key in _changed_keys(lora):
        if key in twins:
            continue  # the tied head's own copy of the embedding's change
        name = key if key in target.tensors else names.get(key)
        is_head = kinds.get(name or "") == "head" or key == HEAD
        if target.tied and is_head and kind == "replacement" and embedding is not None:
            name = untied_head = name or HEAD
            kinds[name] = "head"
            shape, info = lora.replacement_shape(key), target.tensors[embedding]
        elif name is None or (target.tied and is_head):
            tied = " (it is tied to the embedding there)" if target.tied and "head" in key else ""
            raise CheckpointError(
                f"{target.name} has no tensor '{key}'{tied}, which {lora.name} changes; give a "
                "checkpoint of the adapter's architecture."
            )
        else:
            shape, info = _shape(lora, kind, key, kinds[name]), target.tensors[name]
        rows_only = kinds[name] in ("embedding", "head") and kind != "replacement"
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
        linear = kinds[name] in ("projection", "head")
        changes[name] = Change(name, kind, key, shape[0] if shape else 1, kinds[name], linear)
    projections = [role.module for role in roles.values() if role.kind == "projection"]
    warnings = [*lora.warnings, *lora.incomplete(projections)]
    if not target.tied:
        return Match(changes, warnings=warnings)
    return _with_tied_head(lora, target, kinds, changes, untied_head, bool(twins), warnings)


def names_in_transformers(roles: Mapping[str, Role]) -> dict[str, str]:
    """Name in the model class -> name in the target, which may lack `model.`, of weights and
    biases."""
    kinds = {name: "bias" if role.kind == "bias" else "weight" for name, role in roles.items()}
    return {f"{roles[name].module}.{kind}": name for name, kind in kinds.items()}


def _changed_keys(lora: Adapter) -> Iterator[tuple[str, str]]:
    yield from (("factors", key) for key in lora.modules)
    yield from (("difference", key) for key in lora.differences)
    yield from (("replacement", key) for key in lora.replaced)


def _shape(lora: Adapter, kind: str, key: str, role: str) -> tuple[int, ...]:
    if kind == "factors":
        return lora.shape(key, linear=role in ("projection", "head"))
    return lora.difference_shape(key) if kind == "difference" else lora.replacement_shape(key)


def _equal_twins(lora: Adapter) -> set[str]:
    """Keys of a head with the same change as the embedding, element by element.

    PEFT's ensure_weight_tying stores the change of both.
    """
    if HEAD in lora.modules:
        twin = next((key for key, module in lora.modules.items() if module.embedding), None)
        if twin is None:
            return set()
        pairs = zip(lora.factors(HEAD, linear=True), lora.factors(twin), strict=True)
        # the order of two products differs, their values do not
        return {HEAD} if all(torch.equal(one, other) for one, other in pairs) else set()
    if HEAD in lora.replaced:
        twin = next((key for key in lora.replaced if "embed" in key), None)
        if twin is not None and torch.equal(lora.replacement(HEAD), lora.replacement(twin)):
            return {HEAD}
    return set()


def _with_tied_head(
    lora: Adapter,
    target: Checkpoint,
    kinds: Mapping[str, str],
    changes: dict[str, Change],
    untied_head: str | None,
    changed_together: bool,
    warnings: list[str],
) -> Match:
    """The changes of a target whose head is tied to the embedding.

    A replaced embedding leaves the head as it was, so the head is untied, unless the adapter
    changes both (`changed_together`). Any other change of the embedding is one of the head, also
    where the checkpoint stores the head again.
    """
    name = next((name for name, kind in kinds.items() if kind == "embedding"), None)
    embedding = changes.get(name or "")
    heads = [name for name, kind in kinds.items() if kind == "head" and name in target.tensors]
    if embedding is None or untied_head is not None:
        return Match(changes, name, untied_head, warnings)
    if embedding.kind == "replacement" and not changed_together:
        return Match(changes, name, heads[0] if heads else HEAD, warnings)
    shape = target.tensors[embedding.tensor].shape
    for head in heads:
        if target.tensors[head].shape == shape:
            changes[head] = replace(embedding, tensor=head, role="head")
    if embedding.kind == "factors" and not changed_together:
        warnings = [
            *warnings,
            f"{lora.name} changes the embedding of {target.name}, which is its output head too: "
            "the change goes into both, as in PEFT's own merge; unmerged, PEFT changes the "
            "embedding only.",
        ]
    return Match(changes, warnings=warnings)
