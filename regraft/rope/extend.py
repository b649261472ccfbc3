"""A context changed to another theta, length or RoPE family."""

from __future__ import annotations

import math
from collections.abc import Sequence

from regraft.errors import InputError, did_you_mean
from regraft.records import RopeParameters
from regraft.rope.context import ContextSpec
from regraft.rope.spelling import NEEDS_ORIGINAL, REQUIRED, SHARED

_LLAMA3_FACTORS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # as published with Llama 3.1


def extend_context(
    spec: ContextSpec,
    *,
    theta: float | None = None,
    length: int | None = None,
    rope_type: str | None = None,
    factor: float | None = None,
    original: int | None = None,
    short_factor: Sequence[float] | None = None,
    long_factor: Sequence[float] | None = None,
) -> ContextSpec:
    """`spec` with new values; what is not given stays.

    theta: the RoPE base. length, original: context length after and before extension, in tokens.
    rope_type: the RoPE family; another one drops the parameters of the old family and takes
    `original` from the spec's original (or present) length. factor: the family's scaling factor,
    by default length / original where `rope_type` and `length` are given. short_factor,
    long_factor: of longrope, one for each pair of dimensions; by default its own, and ones for
    short_factor.
    Where layer types rotate differently only the full-attention layers change: the sliding ones
    never see the longer context. Raises InputError for values that the family cannot use.
    """
    main = dict(spec.of_layer(None))
    family = main["rope_type"] if rope_type is None else rope_type
    before = original or spec.original_max_position_embeddings or spec.max_position_embeddings
    if family != main["rope_type"]:
        main = _with_family(main, family)
    if family == "dynamic" and length not in (None, spec.max_position_embeddings):
        raise InputError(
            "dynamic RoPE takes max_position_embeddings as the length before scaling; "
            "leave the length out and give the factor."
        )
    if family == "longrope":
        _set_factors(main, short_factor, long_factor)
    has_factor = "factor" in REQUIRED.get(family, ())
    if has_factor and factor is None and rope_type is not None and length is not None:
        factor = length / before
    if factor is not None:
        _check_factor(factor, family, has_factor)
        main["factor"] = factor
    if has_factor and "factor" not in main:
        raise InputError(f"RoPE family {family} needs a factor; give factor or length.")
    if theta is not None:
        main["rope_theta"] = theta
    new_original = original or (
        None if rope_type == "default" else spec.original_max_position_embeddings
    )
    if family in NEEDS_ORIGINAL:
        main["original_max_position_embeddings"] = new_original = before
    kind = spec.main_layer_type
    parameters = main if kind is None else {**spec.rope_parameters, kind: main}
    new_length = spec.max_position_embeddings if length is None else length
    return ContextSpec(parameters, new_length, new_original)


def _with_family(parameters: RopeParameters, family: str) -> RopeParameters:
    """The parameters of `family` that the present ones give: those that every family has."""
    if family not in REQUIRED:
        raise InputError(
            f"'{family}' is no RoPE family{did_you_mean(family, REQUIRED)}; "
            f"choose from {', '.join(REQUIRED)}."
        )
    shared = {key: parameters[key] for key in SHARED if key in parameters}
    return {"rope_type": family, **shared, **(_LLAMA3_FACTORS if family == "llama3" else {})}


def _set_factors(
    parameters: RopeParameters,
    short_factor: Sequence[float] | None,
    long_factor: Sequence[float] | None,
) -> None:
    if long_factor is not None:
        parameters["long_factor"] = list(long_factor)
    if "long_factor" not in parameters:
        raise InputError(
            "longrope needs a factor per dimension, which cannot be given here; "
            "take the context from a checkpoint that has them."
        )
    if short_factor is not None or "short_factor" not in parameters:
        ones = [1.0] * len(parameters["long_factor"])
        parameters["short_factor"] = ones if short_factor is None else list(short_factor)


def _check_factor(factor: float, family: str, has_factor: bool) -> None:
    if not has_factor:
        raise InputError(
            f"RoPE family {family} takes no factor; "
            "leave it out or name a family, such as rope_type=yarn."
        )
    if not factor >= 1 or math.isinf(factor):
        raise InputError(f"A RoPE factor must be at least 1, not {factor:g}.")
