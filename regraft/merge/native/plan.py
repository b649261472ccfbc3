"""The plan of a native merge: inputs, parameters, shape and dtype of every tensor, and the shards.

It is made from headers and configs; no weight is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from regraft.checkpoint.dtypes import dtype_name
from regraft.checkpoint.write.shard_plan import PlannedTensor, plan_shards
from regraft.errors import InputError
from regraft.input_files import JsonObject
from regraft.merge.files.config import output_config
from regraft.merge.inputs.inputs import Input, Inputs
from regraft.merge.inputs.match import Group, Member, StoredTensor, match_tensors
from regraft.merge.methods.parameter import ParameterValues
from regraft.merge.methods.registry import Method
from regraft.merge.recipe import parameters
from regraft.merge.recipe.recipe import Recipe, Slice, Source
from regraft.rope import ContextSpec

_SHARD_BYTES = 5_000_000_000  # transformers' default, for outputs not cut like the donor


@dataclass(frozen=True)
class Output:
    """One output tensor: its inputs, its base, and the method's parameters.

    kind, leaf, layer: its role. anchor: index of the input that changes are measured from where
    there is no base.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str
    leaf: str
    layer: int | None
    inputs: tuple[StoredTensor, ...]
    base: StoredTensor | None
    anchor: int
    params: ParameterValues

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def adapter_rank(self) -> int:
        """The summed rank of the adapters' changes, at most that of a matrix of this shape."""
        ranks = [
            one.adapter.rank(one.changes[name].key)
            for one, name in self.inputs
            if name in one.changes and one.adapter is not None
        ]
        return min(sum(ranks), *self.shape)

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """All tensors that are read."""
        return self.inputs if self.base is None else (*self.inputs, self.base)


@dataclass(frozen=True)
class Plan:
    """A native merge ready to run. config: the output's config.json."""

    method: Method
    outputs: list[Output]
    config: JsonObject
    shards: dict[str, list[PlannedTensor]]

    @property
    def read_bytes(self) -> int:
        return sum(one.info(name).nbytes for out in self.outputs for one, name in out.tensors)

    @property
    def write_bytes(self) -> int:
        return sum(out.nbytes for out in self.outputs)

    @property
    def changed(self) -> list[Output]:
        """The outputs that an input's adapter changes."""
        return [out for out in self.outputs if any(name in one.changes for one, name in out.inputs)]


def make_plan(
    recipe: Recipe,
    inputs: Inputs,
    method: Method,
    donor: Input,
    context: ContextSpec,
    *,
    vocabulary: int | None = None,
    max_shard_bytes: int | None = None,
) -> Plan:
    """Plan every output tensor. vocabulary: rows that embedding and head are cut to, None for all.

    Raises InputError with the recipe's line where inputs, parameters or dtypes do not fit.
    """
    parameters.warn_unused(recipe, method)
    groups = match_tensors(recipe, inputs, vocabulary=vocabulary)
    outputs = [_output(recipe, method, group) for group in groups]
    config = output_config(
        recipe, inputs, donor, context,
        layers=1 + max((out.layer for out in outputs if out.layer is not None), default=-1),
        vocabulary=vocabulary,
        dtypes={dtype_name(out.dtype) for out in outputs if out.kind == "projection"},
    )  # fmt: skip
    same = {out.name for out in outputs} == set(donor.checkpoint.tensors)
    if not same and max_shard_bytes is None:
        max_shard_bytes = _SHARD_BYTES
    shards = plan_shards(
        [PlannedTensor(out.name, out.shape, out.dtype) for out in outputs],
        like=donor.checkpoint if same else None,
        max_shard_bytes=max_shard_bytes,
    )
    return Plan(method, outputs, config, shards)


def _output(recipe: Recipe, method: Method, group: Group) -> Output:
    base = _base(recipe, method, group.part)
    others = [member for member in group.members if member.source is not base]
    try:
        method.check_inputs(len(others), base=base is not None)
    except InputError as error:
        raise recipe.error(group.part.where, f"{str(error).rstrip('.')}.") from None
    return Output(
        name=group.name,
        shape=group.shape,
        dtype=_dtype(recipe, group.members),
        kind=group.role.kind,
        leaf=group.role.leaf,
        layer=group.layer,
        inputs=tuple(member.stored for member in others),
        base=next((member.stored for member in group.members if member.source is base), None),
        anchor=next((i for i, m in enumerate(others) if m.source.ref == group.part.base), 0),
        params=parameters.bind(
            recipe, group.part, method, [(member.source, member.name) for member in others],
            group.tensor, group.t,
        ),
    )  # fmt: skip


def _base(recipe: Recipe, method: Method, part: Slice) -> Source | None:
    if method.base == "ignored" or part.base is None:
        return None
    for source in part.sources:
        if source.ref == part.base:
            return source
    raise recipe.error(
        part.where, f"the base_model {part.base} is not among the sources of this slice; add it "
        "with its layer_range.",
    )  # fmt: skip


def _dtype(recipe: Recipe, members: tuple[Member, ...]) -> torch.dtype:
    """The recipe's dtype, else that of all inputs. Raises InputError where they differ."""
    if recipe.out_dtype is not None:
        return getattr(torch, recipe.out_dtype)
    first = members[0]
    dtype = first.stored[0].info(first.stored[1]).dtype
    for member in members[1:]:
        own = member.stored[0].info(member.stored[1]).dtype
        if own != dtype:
            raise recipe.error(
                member.source.where, f"'{first.name}' is {dtype_name(own)} in {member.source.ref} "
                f"and {dtype_name(dtype)} in {first.source.ref}; choose the output's, such as "
                "'out_dtype: bfloat16'.",
            )  # fmt: skip
    return dtype
