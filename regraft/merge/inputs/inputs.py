"""The models of a recipe as streams of float32 rows; adapters are applied block by block.

`base+adapter`, and an adapter alone on the recipe's base, need no copy of the model: W + s B A is
computed for each block of rows as it is read. A checkpoint of several inputs is opened once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from regraft import progress
from regraft.adapters.apply.check import merged_context, relate_to_base
from regraft.adapters.apply.match import Change, match_changes
from regraft.adapters.folder import digests, is_adapter_folder
from regraft.adapters.reader import Adapter
from regraft.checkpoint.finite import is_finite
from regraft.checkpoint.hf.roles import Role, tensor_roles
from regraft.checkpoint.read.header import TensorInfo
from regraft.checkpoint.read.source import Checkpoint
from regraft.document import Where
from regraft.errors import CheckpointError, InputError
from regraft.merge.inputs.config_check import check_config
from regraft.merge.recipe.recipe import Recipe
from regraft.merge.recipe.references import ModelRef
from regraft.records import MergedAdapter, MergeInput, RelationRecord
from regraft.rope import ContextSpec


class Input:
    """One model, perhaps with an adapter.

    names: a tensor's name in transformers -> its name in this checkpoint. role_of: the role of each
    stored tensor. changes: what the adapter does to it.
    """

    def __init__(self, ref: ModelRef, checkpoint: Checkpoint, adapter: Adapter | None) -> None:
        self.ref, self.checkpoint, self.adapter = ref, checkpoint, adapter
        self.role_of: dict[str, Role] = tensor_roles(checkpoint.config, checkpoint.tensors)
        self.names = {name_in_transformers(name, role): name for name, role in self.role_of.items()}
        if len(self.names) < len(self.role_of):
            self.names = {name: name for name in self.role_of}
        self.changes: dict[str, Change] = {}
        self.lineage: RelationRecord | None = None
        if adapter is not None:
            match = match_changes(adapter, checkpoint, self.role_of, 1.0)
            if match.untied_head is not None:
                raise InputError(
                    f"{adapter.name} replaces one of embedding and head, which {checkpoint.name} "
                    "ties; write the model with `regraft apply` first, which unties them."
                )
            for text in match.warnings:
                progress.warn(text)
            self.changes = match.changes
            self.lineage = relate_to_base(adapter, checkpoint, self.role_of)
        self._loaded: dict[str, tuple[str, Tensor | None, Tensor]] = {}

    def __str__(self) -> str:
        return str(self.ref)

    def info(self, name: str) -> TensorInfo:
        return self.checkpoint.tensors[name]

    @cached_property
    def layers(self) -> int:
        """Number of layers of the checkpoint."""
        layers = {role.layer for role in self.role_of.values() if role.layer is not None}
        return 1 + max(layers) if layers else 0

    @cached_property
    def contexts(self) -> tuple[ContextSpec, ...]:
        """The context of this input; two where model and adapter have different ones."""
        own = ContextSpec.from_config(self.checkpoint.config)
        if self.adapter is None or self.adapter.context is None:
            return (own,)
        before, after = self.adapter.context
        merged = merged_context(own, before, after)
        return (merged,) if merged is not None else (own, after)

    def load_change(self, name: str) -> None:
        """Load the adapter's change of one tensor, which `rows` needs, until `release_change`."""
        change = self.changes.get(name)
        if change is None or self.adapter is None or name in self._loaded:
            return
        if change.kind == "factors":
            self._loaded[name] = (change.kind, *change.factors(self.adapter))
        elif change.kind == "difference":
            self._loaded[name] = (change.kind, None, self.adapter.difference(change.key))
        else:
            self._loaded[name] = (change.kind, None, self.adapter.replacement(change.key))

    def rows(self, name: str, rows: slice, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A new tensor of these rows in `dtype`; a tensor without axes is one row.

        Raises CheckpointError where a number is not finite.
        """
        shape = self.checkpoint.tensors[name].shape
        if shape:
            first, last, step = rows.indices(shape[0])
            stored = self.checkpoint.rows(name, first, max(first, last), step)
        else:
            stored = self.checkpoint.tensor(name).reshape(1)[rows]
        block = stored.to(device).to(dtype)  # sent as stored, which is narrower
        change = self.changes.get(name)
        if change is not None:
            part = slice(rows.start, min(rows.stop, change.rows), rows.step)
            kind, b, a = self._loaded[name]
            count = len(range(*part.indices(shape[0] if shape else 1)))
            if kind == "factors" and count:
                assert b is not None
                block[:count].addmm_(b[part].to(block), a.to(block))
            elif kind == "difference" and count:
                block[:count] += a.reshape(-1, *block.shape[1:])[part].to(block)
            elif kind == "replacement":
                block = a.reshape(-1, *block.shape[1:])[rows].to(block, copy=True)
        if not is_finite(block):
            raise CheckpointError(
                f"Tensor '{name}' of {self} has NaN or infinite numbers; give a model without them."
            )
        return block

    def release_change(self, name: str) -> None:
        """Free what `load_change` loaded."""
        self._loaded.pop(name, None)

    def record(self) -> MergeInput:
        """This input's entry in the record of the output."""
        adapter = None
        if self.adapter is not None:
            adapter = MergedAdapter(
                name=self.adapter.name, sha256=digests(self.adapter.folder), lineage=self.lineage
            )
        return MergeInput(
            name=self.ref.model,
            revision=self.checkpoint.revision,
            fingerprint=self.checkpoint.fingerprint(),
            context=[context.to_record() for context in self.contexts],
            adapter=adapter,
        )


class Inputs:
    """The models of a recipe, opened and checked; a context manager that closes them.

    Iterates in the order of `Recipe.references`. Raises InputError with the recipe's line.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._open: dict[str, Checkpoint] = {}
        self._inputs: dict[ModelRef, Input] = {}
        try:
            for ref, where in recipe.references():
                self._inputs[ref] = self._input(recipe, ref, where)
        except BaseException:
            self.close()
            raise

    def __getitem__(self, ref: ModelRef) -> Input:
        return self._inputs[ref]

    def __iter__(self) -> Iterator[Input]:
        return iter(self._inputs.values())

    def __len__(self) -> int:
        return len(self._inputs)

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all checkpoints."""
        for checkpoint in self._open.values():
            checkpoint.close()

    def paths(self) -> list[str]:
        """All folders that are read."""
        adapters = [str(one.adapter.folder) for one in self if one.adapter is not None]
        return [*self._open, *adapters]

    def _input(self, recipe: Recipe, ref: ModelRef, where: Where) -> Input:
        model, lora = ref.model, ref.lora
        if lora is None and _is_adapter(model):
            base = recipe.body.base_model
            if base is None or _is_adapter(base.model):
                raise recipe.error(
                    where, f"{model} is an adapter; name the model that it changes as base_model."
                )
            assert base is not None
            if base.adapter is not None:
                raise recipe.error(
                    where,
                    f"{model} is an adapter and base_model has one already; write model+adapter.",
                )
            model, lora = base.model, model
        try:
            if model not in self._open:
                self._open[model] = Checkpoint.open(model)
                check_config(self._open[model])
            return Input(ref, self._open[model], Adapter.open(lora) if lora else None)
        except InputError as error:
            message = str(error)
            raise recipe.error(where, message if len(message) < 500 else message[:500]) from None


def _is_adapter(name: str) -> bool:
    """Whether a local folder is an adapter. The Hub is not contacted."""
    return is_adapter_folder(Path(name).expanduser())


def name_in_transformers(name: str, role: Role) -> str:
    """The tensor's name in transformers, however the checkpoint spells it."""
    return f"{role.module}.{name.rpartition('.')[2]}"


def at_layer(name: str, layer: int) -> str:
    """The name with its layer's number replaced."""
    parts = name.split(".")
    index = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join([*parts[:index], str(layer), *parts[index + 1 :]])
