"""Which stored tensors are merged to which output tensor, from headers alone.

The layers of all slices are numbered consecutively. The embedding comes from the first slice, final
norm and head from the last, as in mergekit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from regraft.adapters import lineage
from regraft.checkpoint.dtypes import FLOAT_DTYPES
from regraft.checkpoint.hf.roles import Role, unknown_tensors
from regraft.merge.inputs.inputs import Input, Inputs, at_layer
from regraft.merge.methods.registry import Method
from regraft.merge.recipe.recipe import Recipe, Slice, Source

StoredTensor = tuple[Input, str]
"""An input and the name of a tensor in its checkpoint."""

_ARCHITECTURE = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim")


@dataclass(frozen=True)
class Member:
    """One source's tensor. name: in transformers, with the source's own layer."""

    source: Source
    name: str
    stored: StoredTensor


@dataclass(frozen=True)
class Group:
    """The tensors that are merged to one output tensor, including the base's.

    name: of the tensor in the output's files; tensor: its name in transformers; t: position of the
    layer in its slice from 0 to 1, for gradients.
    """

    part: Slice
    name: str
    tensor: str
    layer: int | None
    t: float
    shape: tuple[int, ...]
    members: tuple[Member, ...]

    @property
    def role(self) -> Role:
        one, name = self.members[0].stored
        return one.role_of[name]


def match_tensors(
    recipe: Recipe, inputs: Inputs, *, vocabulary: int | None = None, any_vocabulary: bool = False
) -> Iterator[Group]:
    """Every output tensor with the tensors that are merged to it.

    vocabulary: the rows that embedding and head are cut to; None for all rows. any_vocabulary: the
    inputs may have different rows there, because mergekit aligns them.

    Raises InputError with the recipe's line where a tensor is missing or shapes differ.
    """
    for part, tensor, layer, t in _tensor_positions(recipe, inputs):
        members = _members(recipe, inputs, part, tensor, layer)
        shape = _shape(recipe, members, vocabulary, any_vocabulary)
        one, stored = members[0].stored
        name = tensor if layer is None else at_layer(tensor, layer)
        if len(recipe.slices) == 1 and layer == one.role_of[stored].layer:
            name = stored  # no layer is renumbered, so the checkpoint's own name fits
        output = tensor if layer is None else at_layer(tensor, layer)
        yield Group(part, name, output, layer, t, shape, members)


def check_relatives(recipe: Recipe, inputs: Inputs, donor: Input) -> list[str]:
    """Check that all inputs have the donor's architecture, the same tying of the head, and weights
    that are not quantised. Returns notes on tensors that are left out.

    Raises InputError with the recipe's line.
    """
    config = donor.checkpoint.config
    where = {one: at for (_, at), one in zip(recipe.references(), inputs, strict=True)}
    notes = []
    for one in inputs:
        other = one.checkpoint.config
        for key in _ARCHITECTURE:
            if key in config and key in other and config[key] != other[key]:
                raise recipe.error(
                    where[one], f"{one} has {key} {other[key]} and {donor} has {config[key]}; only "
                    "models of one architecture merge.",
                )  # fmt: skip
        if one.checkpoint.tied != donor.checkpoint.tied:
            pair = (one, donor) if one.checkpoint.tied else (donor, one)
            raise recipe.error(
                where[one], f"{pair[0]} has its output head tied to the embedding and {pair[1]} "
                "has a head of its own; store the tied model with a head first (untie it).",
            )  # fmt: skip
        unknown = unknown_tensors(other, one.checkpoint.tensors)
        for name in one.checkpoint.tensors:
            if one.info(name).dtype not in FLOAT_DTYPES and name not in unknown:
                raise recipe.error(
                    where[one], f"'{name}' of {one} is stored as {one.info(name).dtype}; give a "
                    "model that is not quantised.",
                )  # fmt: skip
        if unknown:
            notes.append(
                f"left out: {len(unknown)} tensors of {one} that a {other.get('model_type')} "
                f"model does not have, such as {unknown[0]}"
            )
    return notes


def stranger_notes(inputs: Inputs, donor: Input) -> list[str]:
    """A note for each model whose sampled weights are unrelated to the donor's."""
    first, notes = _samples(donor), []
    roles = {name: donor.role_of[stored] for name, stored in donor.names.items()}
    for one in {id(one.checkpoint): one for one in inputs}.values():
        if one.checkpoint is donor.checkpoint:
            continue
        relation = lineage.relate(first, _samples(one), roles)
        if relation.verdict == "stranger":
            notes.append(
                f"{one.checkpoint.name} is no relative of {donor.checkpoint.name}: "
                f"{lineage.describe(relation)}; their merge will hardly be of use"
            )
    return notes


def _samples(one: Input) -> lineage.Sketch:
    """Sampled weights of an input's model, by their names in transformers."""
    samples = lineage.sketch(one.checkpoint)
    return {name: samples[stored] for name, stored in one.names.items() if stored in samples}


def expert_notes(inputs: Inputs, method: Method) -> list[str]:
    """A note where mergekit's result differs: a mixture of experts with a tensor per expert."""
    if method.elementwise:
        return []
    for one in inputs:
        stacks = Counter(
            (role.module, role.leaf) for role in one.role_of.values() if role.kind == "other"
        )
        if max(stacks.values(), default=0) > 1:
            return [
                f"{method.name} takes each expert's matrix as a tensor of its own. mergekit joins "
                "all experts of a layer to one tensor first, where experts that changed most "
                "take the others' share of density, so results differ"
            ]
    return []


def layer_range(recipe: Recipe, inputs: Inputs, source: Source) -> tuple[int, int]:
    """[start, stop) of a source's layers. Raises InputError where the model has fewer layers."""
    layers = inputs[source.ref].layers
    start, stop = source.layers or (0, layers)
    if stop > layers:
        raise recipe.error(
            (*source.where, "layer_range"),
            f"layer_range ends at {stop} and {source.ref} has {layers} layers.",
        )
    return start, stop


def _tensor_positions(
    recipe: Recipe, inputs: Inputs
) -> Iterator[tuple[Slice, str, int | None, float]]:
    """Of every output tensor: slice, its name in the first source (as transformers spells it), the
    output's layer, and t."""
    parts = recipe.slices
    first, last = inputs[parts[0].sources[0].ref], inputs[parts[-1].sources[0].ref]
    before = [name for name, kind in _names_of(first, None) if kind == "embedding"]
    after = [name for name, kind in _names_of(last, None) if kind != "embedding"]
    yield from ((parts[0], name, None, 0.0) for name in before)
    count = 0
    for part in parts:
        lead = part.sources[0]
        start, stop = layer_range(recipe, inputs, lead)
        for other in part.sources:
            one, two = layer_range(recipe, inputs, other)
            if two - one != stop - start:
                raise recipe.error(
                    other.where, f"{other.ref} gives {two - one} layers and {lead.ref} gives "
                    f"{stop - start}; merge equal layer_ranges with 'slices'.",
                )  # fmt: skip
        for index in range(stop - start):
            t = index / (stop - start - 1) if stop - start > 1 else 1.0
            for name, _ in _names_of(inputs[lead.ref], start + index):
                yield part, name, count, t
            count += 1
    yield from ((parts[-1], name, None, 0.0) for name in after)


def _names_of(one: Input, layer: int | None) -> Iterator[tuple[str, str]]:
    """(name in transformers, role) of the input's tensors in a layer; None: outside the layers."""
    unknown = set(unknown_tensors(one.checkpoint.config, one.checkpoint.tensors))
    for name, stored in one.names.items():
        role = one.role_of[stored]
        dropped = stored in unknown or stored.endswith("rotary_emb.inv_freq")
        tied = role.kind == "head" and one.checkpoint.tied
        if role.layer == layer and not dropped and not tied:
            yield name, role.kind


def _members(
    recipe: Recipe, inputs: Inputs, part: Slice, tensor: str, layer: int | None
) -> tuple[Member, ...]:
    """The tensor of every source. tensor: its name in the first source."""
    first = part.sources[0]
    offset = 0
    if layer is not None:
        index = inputs[first.ref].role_of[inputs[first.ref].names[tensor]].layer
        assert index is not None
        offset = index - layer_range(recipe, inputs, first)[0]
    members = []
    for source in part.sources:
        one, name = inputs[source.ref], tensor
        if layer is not None:
            name = at_layer(tensor, layer_range(recipe, inputs, source)[0] + offset)
        if name not in one.names:
            raise recipe.error(
                source.where, f"{source.ref} has no tensor '{name}', which {first.ref} has; only "
                "models of one architecture and depth merge.",
            )  # fmt: skip
        members.append(Member(source, name, (one, one.names[name])))
    return tuple(members)


def _shape(
    recipe: Recipe, members: tuple[Member, ...], vocabulary: int | None, any_vocabulary: bool
) -> tuple[int, ...]:
    """The output's shape. Raises InputError where the inputs have different ones."""
    shapes = []
    for member in members:
        one, stored = member.stored
        shape = one.info(stored).shape
        if one.role_of[stored].kind in ("embedding", "head") and shape:
            rows = shape[0] if vocabulary is None else vocabulary
            shape = (0 if any_vocabulary else rows, *shape[1:])
        shapes.append(shape)
    first = members[0]
    for member, shape in zip(members[1:], shapes[1:], strict=True):
        if shape == shapes[0]:
            continue
        one, stored = member.stored
        if one.role_of[stored].kind in ("embedding", "head") and shape[1:] == shapes[0][1:]:
            raise recipe.error(
                member.source.where, f"the vocabularies differ: '{member.name}' has {shape[0]} "
                f"rows in {member.source.ref} and {shapes[0][0]} in {first.source.ref}; add "
                "'tokenizer: {source: base}' to align them.",
            )  # fmt: skip
        raise recipe.error(
            member.source.where, f"'{member.name}' is {list(one.info(stored).shape)} in "
            f"{member.source.ref} and {list(first.stored[0].info(first.stored[1]).shape)} in "
            f"{first.source.ref}; only models of one shape merge.",
        )  # fmt: skip
    return shapes[0]
