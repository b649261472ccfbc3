"""The RoPE and the context length of every stage of a recipe.

A stage longer than the model's context gets its theta from the recipe: the stage's own, or that of
`rope.law`. A stage that is not longer leaves RoPE and length unchanged, because a fine-tune on
short rows does not reduce the context that the model has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from regraft.errors import InputError
from regraft.rope import ContextSpec, extend_context, scaling_law
from regraft.rope.laws import men_bound, ntk
from regraft.rope.longrope import long_factors
from regraft.train.recipe.recipe import Recipe
from regraft.train.recipe.stages import Rope, Stage
from regraft.units import format_tokens

_SCALED = ("linear", "dynamic", "yarn", "llama3", "longrope")
"""Families that extend the context by factors, so that theta need not change."""


@dataclass(frozen=True)
class StageContexts:
    """The contexts of a stage. first: of its first attempt; fallbacks: of the next attempts, after
    validation has stopped the stage. theta_note: a line on where its theta comes from; None where
    the recipe states it."""

    first: ContextSpec
    fallbacks: tuple[ContextSpec, ...]
    theta_note: str | None

    @property
    def attempts(self) -> list[ContextSpec]:
        """The contexts of all attempts, in order."""
        return [self.first, *self.fallbacks]


def stage_contexts(recipe: Recipe, name: str, config: Mapping[str, Any]) -> list[StageContexts]:
    """The contexts of all stages, for the model `name` with this config.json.

    Raises InputError for a model whose layers have different RoPE, for values that a RoPE family
    cannot use, and for a recovery beyond the model's context.
    """
    base = ContextSpec.from_config(config)
    if base.is_layered:
        raise InputError(
            f"{name} rotates differently by layer type; training needs one RoPE for all layers."
        )
    stages, rope = recipe.body.stages, recipe.body.rope
    if recipe.body.method == "recover":
        for i, stage in enumerate(stages):
            if stage.length > base.max_position_embeddings:
                raise recipe.error(
                    ("stages", i, "length"),
                    f"{name} has a context of {format_tokens(base.max_position_embeddings)} "
                    "tokens; recover within that, or extend it by method full or lora",
                )
        return [StageContexts(base, (), None)] * len(stages)
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    result: list[StageContexts] = []
    current = base
    for i, stage in enumerate(stages):
        first = stage_context(base, current, rope, stage, int(head))
        others = tuple(
            stage_context(base, current, rope, stage.model_copy(update={"theta": theta}), int(head))
            for theta in stage.fallback
        )
        if first.theta in stage.fallback:
            raise recipe.error(
                ("stages", i, "fallback"),
                f"the stage starts with theta {first.theta:.15g}; leave it out of its fallback",
            )
        result.append(StageContexts(first, others, _theta_note(base, rope, stage, first)))
        current = first
    return result


def stage_context(
    base: ContextSpec, current: ContextSpec, rope: Rope, stage: Stage, head_dim: int
) -> ContextSpec:
    """The context that a stage trains. base: of the model before training; current: of the previous
    stage.

    A stage within the current context changes theta only if it states one. Raises InputError for
    values that the family cannot use.
    """
    family = None if rope.family == "keep" else rope.family
    longer = stage.length > current.max_position_embeddings
    if not longer and (family is None or family == current.rope_type):
        return extend_context(current, theta=stage.theta)
    theta = stage.theta
    law = law_of(rope)
    if theta is None and longer and law != "keep":
        theta = float(round(_LAWS[law](base, stage.length, head_dim)))
    if (family or base.rope_type) == "dynamic":  # its config states the length before scaling
        return extend_context(base, theta=theta, rope_type="dynamic", factor=rope.factor)
    length = max(stage.length, current.max_position_embeddings)
    factors = {}
    if family == "longrope":
        factors = _longrope_factors(base, rope, theta or base.theta, length, head_dim)
    return extend_context(
        base,
        theta=theta,
        length=length,
        rope_type=family,
        factor=rope.factor,
        original=rope.original,
        **factors,
    )


def _longrope_factors(
    base: ContextSpec, rope: Rope, theta: float, length: int, head_dim: int
) -> dict[str, list[float] | None]:
    """The recipe's factors; without long ones those of the formula."""
    pairs = rotated_pairs(base, head_dim)
    for name, values in (("short_factor", rope.short_factor), ("long_factor", rope.long_factor)):
        if values is not None and len(values) != pairs:
            raise InputError(
                f"rope: {name} has {len(values)} factors; a head of this model rotates {pairs} "
                "pairs of dimensions, one factor each."
            )
    before = rope.original or base.original_max_position_embeddings or base.max_position_embeddings
    by_formula = long_factors(pairs, theta, before, length)
    return {"short_factor": rope.short_factor, "long_factor": rope.long_factor or by_formula}


def rotary_length(recipe: Recipe, stage: Stage, spec: ContextSpec) -> int:
    """Tokens that the frequencies of a stage are for. A recovery is for the model's whole context;
    but longrope has other factors for short text, and is trained with those of the stage's length.
    """
    if recipe.body.method == "recover" and spec.rope_type != "longrope":
        return max(stage.length, spec.max_position_embeddings)
    return stage.length


def rotated_pairs(spec: ContextSpec, head_dim: int) -> int:
    """Pairs of dimensions of a head that RoPE rotates."""
    return int(head_dim * spec.of_layer(None).get("partial_rotary_factor", 1.0)) // 2


def law_of(rope: Rope) -> str:
    """The recipe's law for theta; without one the scaling law, or 'keep' for a family with a
    factor."""
    if rope.law is not None:
        return rope.law
    return "keep" if rope.family in _SCALED else "scaling"


_LAWS: dict[str, Callable[[ContextSpec, int, int], float]] = {
    "scaling": lambda base, length, _: scaling_law(
        base.theta, base.max_position_embeddings, length
    ),
    "ntk": lambda base, length, head: ntk(base.theta, base.max_position_embeddings, length, head),
    "bound": lambda base, length, _: men_bound(length),
}


def _theta_note(base: ContextSpec, rope: Rope, stage: Stage, spec: ContextSpec) -> str | None:
    if stage.length <= base.max_position_embeddings or stage.theta is not None:
        return None
    law = law_of(rope)
    if law == "keep":
        scaled = (
            "factors of longrope scale"
            if spec.rope_type == "longrope"
            else (f"factor of {spec.rope_type} scales")
        )
        origin = "rope: {law: keep}" if rope.law else f"the {scaled}"
        return f"theta stays {spec.theta:g} ({origin})"
    names = {"scaling": "scaling law", "ntk": "NTK-aware law", "bound": "bound of Men et al."}
    default = (
        "" if rope.law else ", the default; `theta` in the stage or `rope: {law: ..}` change it"
    )
    return (
        f"theta {base.theta:.15g} -> {spec.theta:.15g} for "
        f"{format_tokens(stage.length)} tokens by the {names[law]}{default}"
    )
