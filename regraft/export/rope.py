"""A model's RoPE in GGUF: base, scaling and, without a formula in llama.cpp, frequency factors.

llama.cpp computes linear scaling and YaRN itself. It divides the angle of each frequency by
`rope_freqs`, which is how Llama 3.1's scaling is stored, and knows LongRoPE's two lists of factors.
Formulas: `src/llama-model.cpp` and `src/llama-context.cpp` of llama.cpp as of July 2026.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from regraft.errors import InputError
from regraft.rope import ContextSpec, inverse_frequencies

ROPE_FREQS = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def rope_tensors(spec: ContextSpec, head_dim: int, name: str) -> dict[str, torch.Tensor]:
    """The tensors of RoPE factors, float32 [head_dim / 2]; empty for most families.

    Raises InputError for a RoPE that llama.cpp does not compute; `name`: of the model.
    """
    rope = spec.rope_parameters
    if spec.is_layered or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(
            f"{name} rotates by layer or only a part of each head, which llama.cpp's architecture "
            "llama does not; convert it with llama.cpp's own convert_hf_to_gguf.py."
        )
    kind = spec.rope_type
    if kind in ("default", "linear", "yarn"):
        if rope.get("truncate", True) is not True:
            raise InputError(
                f"{name} has YaRN without truncation, which llama.cpp does not compute; serve it "
                "with transformers or vLLM."
            )
        return {}
    if kind == "longrope":
        return {_LONG: _float32(rope["long_factor"]), _SHORT: _float32(rope["short_factor"])}
    if kind == "llama3":
        frequencies, _ = inverse_frequencies(spec, head_dim)
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
        return {ROPE_FREQS: (spec.theta**-exponents / frequencies).float()}
    raise InputError(
        f"{name} has {kind} RoPE, which llama.cpp does not compute; write a checkpoint with a "
        "static RoPE first, such as `regraft apply --context theta=..,length=..`."
    )


def describe_rope(writer: Any, spec: ContextSpec, head_dim: int) -> None:
    """Add RoPE and context length to the metadata."""
    rope = spec.rope_parameters
    writer.add_context_length(spec.max_position_embeddings)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(spec.theta)
    kind = spec.rope_type
    if kind not in ("linear", "yarn", "longrope"):
        return
    from gguf import RopeScalingType

    writer.add_rope_scaling_type(RopeScalingType(kind))
    if kind == "linear":
        writer.add_rope_scaling_factor(rope["factor"])
        return
    _, attention = inverse_frequencies(spec, head_dim)
    writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
    if kind == "longrope":
        writer.add_rope_scaling_attn_factors(attention)
        return
    factor = rope["factor"]
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_attn_factors(attention / (0.1 * math.log(factor) + 1.0))
    writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
    writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)


def _float32(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)
