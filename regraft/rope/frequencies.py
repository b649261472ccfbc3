"""Frequencies of every RoPE family, and cos/sin tables whose angles are formed in float64.

In float32 an angle at position 4M is wrong by up to 0.125 rad. Frequencies are computed for one
target length: transformers recomputes those of the dynamic families from the positions of a batch,
so they would differ between the shards of one sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from regraft.errors import InputError, short_repr
from regraft.rope.context import ContextSpec
from regraft.rope.spelling import REQUIRED, longrope_scale

if TYPE_CHECKING:
    import torch


def inverse_frequencies(
    spec: ContextSpec,
    head_dim: int,
    length: int | None = None,
    layer_type: str | None = None,
) -> tuple[torch.Tensor, float]:
    """(inverse frequencies in radians per token, attention factor) for one target length.

    Frequencies are float64 [rotary_dim / 2], rotary_dim = head_dim x partial_rotary_factor; the
    attention factor multiplies cos and sin (so attention logits by its square).
    length: the longest context to serve, by default the spec's own. It decides theta of `dynamic`
    beyond max_position_embeddings, and whether `longrope` uses its long factors.
    layer_type: of a spec with a RoPE per layer type; full_attention by default.
    Formulas are those of transformers 5.23 `ROPE_INIT_FUNCTIONS`, evaluated in float64.
    Raises InputError for a family without a formula here, a layer type that does not rotate, and
    parameters that give no numbers.
    """
    rope = spec.of_layer(layer_type)
    try:
        frequencies, attention = _frequencies(spec, rope, head_dim, length)
        is_finite = _all_finite(frequencies) and math.isfinite(attention)
    except (ArithmeticError, ValueError):  # such as log of 0, floor of NaN
        is_finite = False
    if not is_finite:
        raise InputError(
            f"RoPE family '{rope['rope_type']}' with these parameters gives no finite frequencies: "
            f"{short_repr({key: rope[key] for key in rope if key != 'rope_type'})}; correct them."
        )
    return frequencies, attention


def _all_finite(values: torch.Tensor) -> bool:
    """Also True of tensors without values, as of a trace by shapes."""
    import torch

    return type(values) is not torch.Tensor or values.is_meta or bool(values.isfinite().all())


def _frequencies(
    spec: ContextSpec, rope: Mapping[str, Any], head_dim: int, length: int | None
) -> tuple[torch.Tensor, float]:
    import torch

    length = length or spec.max_position_embeddings
    kind = rope["rope_type"]
    theta = rope["rope_theta"]
    dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    factor = rope.get("factor", 1.0)
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    plain = theta**-exponents
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return plain / factor, 1.0
    if kind == "dynamic":
        trained = spec.max_position_embeddings
        grown = factor * max(length, trained) / trained - (factor - 1)
        return (theta * grown ** (dim / (dim - 2))) ** -exponents, 1.0
    if kind == "yarn":
        ramp = _yarn_ramp(rope, dim)
        return plain / factor * ramp + plain * (1 - ramp), _yarn_attention(rope)
    if kind == "llama3":
        return _llama3(plain, rope), 1.0
    if kind == "longrope":
        original = rope["original_max_position_embeddings"]
        factors = rope["long_factor"] if length > original else rope["short_factor"]
        if len(factors) != len(plain):
            raise InputError(
                f"longrope has {len(factors)} factors for {len(plain)} frequencies; "
                "they belong to a model with another head size."
            )
        return plain / torch.tensor(factors, dtype=torch.float64), _longrope_attention(rope, spec)
    if kind == "proportional":
        rotated = int(rope.get("partial_rotary_factor", 1.0) * head_dim // 2)
        exponents = torch.arange(0, 2 * rotated, 2, dtype=torch.float64) / head_dim
        still = torch.zeros(head_dim // 2 - rotated, dtype=torch.float64)
        return torch.cat([theta**-exponents, still]) / factor, 1.0
    raise InputError(f"RoPE family '{kind}' has no formula here; known are {', '.join(REQUIRED)}.")


def tables(
    spec: ContextSpec,
    head_dim: int,
    positions: torch.Tensor,
    length: int | None = None,
    layer_type: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), each float32 [*positions.shape, rotary_dim], on the device of `positions`.

    The last axis holds every frequency twice, first half then second, as transformers'
    `apply_rotary_pos_emb` expects it; the attention factor is already in. Angles are products in
    float64, so the tables are exact to float32 rounding (1e-7) at any position below 2**28.
    """
    import torch

    frequencies, attention = inverse_frequencies(spec, head_dim, length, layer_type)
    angles = positions.to(torch.float64)[..., None] * frequencies.to(positions.device)
    cos = (angles.cos() * attention).to(torch.float32)
    sin = (angles.sin() * attention).to(torch.float32)
    return torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)


# Families in detail


def _yarn_ramp(rope: Mapping[str, Any], dim: int) -> torch.Tensor:
    """YaRN's gamma [dim/2]: 0 where a frequency stays as it is, 1 where it is interpolated.

    arXiv 2309.00071, eq. 18 and 23: the ends are the dimensions that rotate beta_fast and beta_slow
    times within the original context.
    """
    import torch

    def dimension(turns: float) -> float:
        wavelength = rope["original_max_position_embeddings"] / (turns * 2 * math.pi)
        return dim * math.log(wavelength) / (2 * math.log(rope["rope_theta"]))

    low = dimension(rope.get("beta_fast") or 32)
    high = dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    return ((torch.arange(dim // 2, dtype=torch.float64) - low) / width).clamp(0, 1)


def _yarn_attention(rope: Mapping[str, Any]) -> float:
    """YaRN's 0.1 ln s + 1, or DeepSeek's ratio of two of them."""
    if "attention_factor" in rope:
        return float(rope["attention_factor"])

    def mscale(weight: float) -> float:
        return 1.0 if rope["factor"] <= 1 else 0.1 * weight * math.log(rope["factor"]) + 1.0

    numerator, denominator = rope.get("mscale"), rope.get("mscale_all_dim")
    if numerator and denominator:
        return mscale(numerator) / mscale(denominator)
    return mscale(1.0)


def _llama3(plain: torch.Tensor, rope: Mapping[str, Any]) -> torch.Tensor:
    """Llama 3.1: short wavelengths stay, long ones are divided by `factor`, linear in between."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (keep + (1 - keep) / rope["factor"])


def _longrope_attention(rope: Mapping[str, Any], spec: ContextSpec) -> float:
    """LongRoPE's sqrt(1 + ln s / ln L0), s = length / L0, unless stated."""
    if "attention_factor" in rope:
        return float(rope["attention_factor"])
    original = rope["original_max_position_embeddings"]
    return longrope_scale(spec.max_position_embeddings / original, original)
