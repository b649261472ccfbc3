"""What a merge will do, tensor by tensor, settled from headers and configs before a weight is read.

The output has the tensors of its first slice outside the layers before them, those of its last
slice after them, and the slices' layers counted through, as mergekit has it. The donor of config
and tokenizer is base_model, else the first model of the file: no set, no hash seed decides.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from regraft.checkpoint import roles
from regraft.checkpoint.layout import Planned, plan_shards
from regraft.errors import InputError
from regraft.merge import parameters
from regraft.merge.inputs import FLOATS, Input, Inputs, at_layer
from regraft.merge.methods.registry import Method
from regraft.merge.recipe import Recipe, Slice, Source
from regraft.rope import ContextSpec

Tensor = tuple[Input, str]  # an input and the name of a tensor in its checkpoint
_SHARD_BYTES = 5_000_000_000  # as transformers cuts, where no input shows how


@dataclass(frozen=True)
class Output:
    """One tensor to make: from which tensors, on which base, with which parameters."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str
    leaf: str
    layer: int | None
    inputs: tuple[Tensor, ...]
    base: Tensor | None
    anchor: int  # which input changes are measured against where there is no base
    params: dict[str, Any]

    @property
    def reference(self) -> Tensor:
        """What changes are measured against."""
        return self.base or self.inputs[self.anchor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that is read."""
        return self.inputs if self.base is None else (*self.inputs, self.base)


@dataclass(frozen=True)
class Plan:
    """A native merge ready to run."""

    method: Method
    outputs: list[Output]
    config: dict[str, Any]
    shards: dict[str, list[Planned]]

    @property
    def read_bytes(self) -> int:
        return sum(one.info(name).nbytes for out in self.outputs for one, name in out.tensors)

    @property
    def write_bytes(self) -> int:
        return sum(out.nbytes for out in self.outputs)


def make_plan(
    recipe: Recipe,
    inputs: Inputs,
    method: Method,
    donor: Input,
    context: ContextSpec,
    max_shard_bytes: int | None = None,
) -> Plan:
    """Every tensor to make, checked against the models' headers. Raises InputError by line."""
    parameters.warn_unused(recipe, method)
    outputs = [_output(recipe, inputs, method, *place) for place in _tensors(recipe, inputs)]
    layers = 1 + max((out.layer for out in outputs if out.layer is not None), default=-1)
    dtypes = {_short(out.dtype) for out in outputs if out.kind == "projection"}
    config = output_config(recipe, inputs, donor, context, layers, dtypes)
    same = {out.name for out in outputs} == set(donor.checkpoint.tensors)
    if not same and max_shard_bytes is None:
        max_shard_bytes = _SHARD_BYTES
    shards = plan_shards(
        [Planned(out.name, out.shape, out.dtype) for out in outputs],
        like=donor.checkpoint if same else None,
        max_shard_bytes=max_shard_bytes,
    )
    return Plan(method, outputs, config, shards)


def find_donor(recipe: Recipe, inputs: Inputs) -> tuple[Input, str]:
    """The input whose config and tokenizer the output gets, and why it."""
    if recipe.body.base_model is not None:
        return inputs[recipe.body.base_model], "base_model"
    return next(iter(inputs)), "the first model of the recipe"


def settle_context(recipe: Recipe, inputs: Inputs, donor: Input) -> tuple[ContextSpec, str]:
    """The output's RoPE and length, and who decided. Unequal inputs and no `context` are refused.

    Raises InputError.
    """
    wanted = recipe.body.context
    if wanted is None:
        found: list[tuple[ContextSpec, str]] = []
        for one in inputs:
            for spec in one.contexts:
                if all(spec != other for other, _ in found):
                    found.append((spec, str(one)))
        if len(found) == 1:
            return found[0][0], "the same in all inputs"
        listed = "; ".join(f"{name}: {spec.describe()}" for spec, name in found[:4])
        longest = max(found, key=lambda item: item[0].max_position_embeddings)[1]
        raise recipe.error(
            (), f"the inputs place tokens differently ({listed}); say which holds, such as "
            f"'context: {{from: {longest}}}'.",
        )  # fmt: skip
    chosen, why = donor, ""
    if wanted.source is not None:
        chosen = _named(recipe, inputs, wanted.source)
        why = f"from {chosen}"
    changes = wanted.changes()
    if changes:
        why = (f"{why}, " if why else "") + ", ".join(f"{k}={v}" for k, v in changes.items())
    try:
        return chosen.contexts[-1].extended(**changes), why
    except InputError as error:
        raise recipe.error(("context",), str(error)) from None


def _named(recipe: Recipe, inputs: Inputs, name: str) -> Input:
    """The input that `context: {from: name}` means: by full name, adapter, or model."""
    if name == "base" and recipe.body.base_model is not None:
        return inputs[recipe.body.base_model]
    for spelling in ("whole", "lora", "model"):
        for one in inputs:
            if name == {"whole": str(one), "lora": one.ref.lora, "model": one.ref.model}[spelling]:
                return one
    known = ", ".join(str(one) for one in inputs)
    raise recipe.error(("context", "from"), f"'{name}' is no input here ({known}).")


def check_relatives(recipe: Recipe, inputs: Inputs, donor: Input) -> list[str]:
    """Architecture, heads and vocabularies fit together; what is left out of the merge."""
    config = donor.checkpoint.config
    where = {one: at for (ref, at), one in zip(recipe.references(), inputs, strict=True)}
    tied = donor.checkpoint.tied
    notes = []
    for one in inputs:
        other = one.checkpoint.config
        for key in ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim"):
            if key in config and key in other and config[key] != other[key]:
                raise recipe.error(
                    where[one], f"{one} has {key} {other[key]} and {donor} has {config[key]}; only "
                    "models of one architecture merge.",
                )  # fmt: skip
        if one.checkpoint.tied != tied:
            pair = (one, donor) if one.checkpoint.tied else (donor, one)
            raise recipe.error(
                where[one], f"{pair[0]} has its output head tied to the embedding and {pair[1]} "
                "has a head of its own; store the tied model with a head first (untie it).",
            )  # fmt: skip
        unknown = roles.unknown(other, one.checkpoint.tensors)
        for name in one.checkpoint.tensors:
            if one.info(name).dtype not in FLOATS and name not in unknown:
                raise recipe.error(
                    where[one], f"'{name}' of {one} is stored as {one.info(name).dtype}; give a "
                    "model that is not quantised.",
                )  # fmt: skip
        if unknown:
            notes.append(
                f"left out: {len(unknown)} tensors of {one} that a {other.get('model_type')} "
                f"model has no place for, such as {unknown[0]}"
            )
    return notes


def _tensors(recipe: Recipe, inputs: Inputs) -> Iterator[tuple[Slice, str, int | None, float]]:
    """(slice, name in transformers with the layer of the first source, output's layer, t)."""
    parts = recipe.slices
    before, after = [], []
    for name, kind in _names_of(inputs[parts[0].sources[0].ref], None):
        if kind == "embedding":
            before.append(name)
    for name, kind in _names_of(inputs[parts[-1].sources[0].ref], None):
        if kind != "embedding":
            after.append(name)
    yield from ((parts[0], name, None, 0.0) for name in before)
    count = 0
    for part in parts:
        first = part.sources[0]
        start, stop = layer_range(recipe, inputs, first)
        for other in part.sources:
            one, two = layer_range(recipe, inputs, other)
            if two - one != stop - start:
                raise recipe.error(
                    other.where, f"{other.ref} gives {two - one} layers and {first.ref} gives "
                    f"{stop - start}; merge equal layer_ranges with 'slices'.",
                )  # fmt: skip
        for index in range(stop - start):
            t = index / (stop - start - 1) if stop - start > 1 else 1.0
            for name, _ in _names_of(inputs[first.ref], start + index):
                yield part, name, count, t
            count += 1
    yield from ((parts[-1], name, None, 0.0) for name in after)


def _names_of(one: Input, layer: int | None) -> Iterator[tuple[str, str]]:
    """(name in transformers, role) of what the input stores in a layer, or outside the layers."""
    known = set(roles.unknown(one.checkpoint.config, one.checkpoint.tensors))
    for name, stored in one.names.items():
        role = one.role_of[stored]
        dropped = stored in known or stored.endswith("rotary_emb.inv_freq")
        if (
            role.layer == layer
            and not dropped
            and not (role.kind == "head" and one.checkpoint.tied)
        ):
            yield name, role.kind


def layer_range(recipe: Recipe, inputs: Inputs, source: Source) -> tuple[int, int]:
    """[start, stop) of a source's layers. Raises InputError beyond its last one."""
    layers = inputs[source.ref].layers
    start, stop = source.layers or (0, layers)
    if stop > layers:
        raise recipe.error(
            (*source.where, "layer_range"),
            f"layer_range ends at {stop} and {source.ref} has {layers} layers.",
        )
    return start, stop


def _output(
    recipe: Recipe,
    inputs: Inputs,
    method: Method,
    part: Slice,
    tensor: str,
    layer: int | None,
    t: float,
) -> Output:
    first = part.sources[0]
    offset = 0
    if layer is not None:
        index = inputs[first.ref].role_of[inputs[first.ref].names[tensor]].layer
        assert index is not None
        offset = index - layer_range(recipe, inputs, first)[0]
    found: list[tuple[Source, str, Tensor]] = []
    for source in part.sources:
        one, name = inputs[source.ref], tensor
        if layer is not None:
            name = at_layer(tensor, layer_range(recipe, inputs, source)[0] + offset)
        if name not in one.names:
            raise recipe.error(
                source.where, f"{source.ref} has no tensor '{name}', which {first.ref} has; only "
                "models of one architecture and depth merge.",
            )  # fmt: skip
        found.append((source, name, (one, one.names[name])))
    base = _base(recipe, method, part)
    others = [entry for entry in found if entry[0] is not base]
    try:
        method.check_inputs(len(others), base=base is not None)
    except InputError as error:
        raise recipe.error(part.where, f"{str(error).rstrip('.')}.") from None
    anchor, anchor_name = found[0][2]
    _check_shapes(recipe, found)
    role = anchor.role_of[anchor_name]
    name = tensor if layer is None else at_layer(tensor, layer)
    if len(recipe.slices) == 1 and layer == role.layer:
        name = anchor_name  # nothing is renumbered: keep the checkpoint's spelling
    return Output(
        name=name,
        shape=anchor.info(anchor_name).shape,
        dtype=_dtype(recipe, found),
        kind=role.kind,
        leaf=role.leaf,
        layer=layer,
        inputs=tuple(entry[2] for entry in others),
        base=next((entry[2] for entry in found if entry[0] is base), None),
        anchor=next((i for i, entry in enumerate(others) if entry[0].ref == part.base), 0),
        params=parameters.bind(
            recipe, part, method, [(source, own) for source, own, _ in others],
            tensor if layer is None else at_layer(tensor, layer), t,
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


def _check_shapes(recipe: Recipe, found: list[tuple[Source, str, Tensor]]) -> None:
    source, _, (anchor, name) = found[0]
    shape = anchor.info(name).shape
    for other, own, (one, stored) in found[1:]:
        its = one.info(stored).shape
        if its == shape:
            continue
        kind = one.role_of[stored].kind
        if kind in ("embedding", "head") and its[1:] == shape[1:]:
            raise recipe.error(
                other.where, f"the vocabularies differ: '{own}' has {its[0]} rows in {other.ref} "
                f"and {shape[0]} in {source.ref}; add 'tokenizer: {{source: base}}' to align them "
                "with mergekit.",
            )  # fmt: skip
        raise recipe.error(
            other.where, f"'{own}' is {list(its)} in {other.ref} and {list(shape)} in "
            f"{source.ref}; only models of one shape merge.",
        )  # fmt: skip


def _dtype(recipe: Recipe, found: list[tuple[Source, str, Tensor]]) -> torch.dtype:
    if recipe.out_dtype is not None:
        return getattr(torch, recipe.out_dtype)
    source, name, (anchor, stored) = found[0]
    dtype = anchor.info(stored).dtype
    for other, _, (one, its) in found[1:]:
        if one.info(its).dtype != dtype:
            raise recipe.error(
                other.where, f"'{name}' is {_short(one.info(its).dtype)} in {other.ref} and "
                f"{_short(dtype)} in {source.ref}; say how to store the result, such as "
                "'out_dtype: bfloat16'.",
            )  # fmt: skip
    return dtype


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def output_config(
    recipe: Recipe,
    inputs: Inputs,
    donor: Input,
    context: ContextSpec,
    layers: int,
    dtypes: set[str],
) -> dict[str, Any]:
    """The donor's config with the output's context, depth, tying and the projections' dtype."""
    config = copy.deepcopy(donor.checkpoint.config)
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    if layers != text.get("num_hidden_layers"):
        text["num_hidden_layers"] = layers
    if isinstance(text.get("layer_types"), list):
        text["layer_types"] = [
            inputs[part.sources[0].ref].checkpoint.config["layer_types"][index]
            for part in recipe.slices
            for index in range(*layer_range(recipe, inputs, part.sources[0]))
        ]
    if len(dtypes) == 1:
        keys = [key for key in ("torch_dtype", "dtype") if key in config] or ["dtype"]
        config.update(dict.fromkeys(keys, next(iter(dtypes))))
    if not donor.checkpoint.tied and roles.tied_head(donor.checkpoint.config):
        config["tie_word_embeddings"] = False
    try:
        return context.write_into(config)
    except InputError as error:
        raise recipe.error(("context",), str(error)) from None


def config_bytes(config: dict[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
