"""RoPE in GGUF: what llama.cpp computes from it are the model's own frequencies."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from regraft.errors import InputError
from regraft.export.rope import ROPE_FREQS, describe_rope, rope_tensors
from regraft.rope import ContextSpec, inverse_frequencies

HEAD = 16
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 256,
}  # fmt: skip


class Writer:
    """Records what a GGUFWriter is told."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda value: self.values.__setitem__(name.removeprefix("add_"), value)


def described(rope: dict[str, Any], length: int) -> dict[str, Any]:
    writer = Writer()
    describe_rope(writer, ContextSpec(rope, length), HEAD)
    return writer.values


def test_llama_3_1_is_stored_as_a_factor_for_each_frequency() -> None:
    spec = ContextSpec(LLAMA3, 2048)
    factors = rope_tensors(spec, HEAD, "m")[ROPE_FREQS]
    plain = 500000.0 ** -(torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD)
    # llama.cpp divides the angle by the factor, which is stored in float32
    torch.testing.assert_close(
        plain / factors.double(), inverse_frequencies(spec, HEAD)[0], rtol=2e-7, atol=0
    )
    assert "rope_scaling_type" not in described(LLAMA3, 2048)


def test_plain_and_linear_rope_need_no_tensors() -> None:
    plain = {"rope_type": "default", "rope_theta": 160000.0}
    assert rope_tensors(ContextSpec(plain, 64), HEAD, "m") == {}
    assert described(plain, 2048) == {
        "context_length": 2048, "rope_dimension_count": HEAD, "rope_freq_base": 160000.0
    }  # fmt: skip
    linear = described({"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, 2048)
    assert (linear["rope_scaling_type"].value, linear["rope_scaling_factor"]) == ("linear", 4.0)


def test_yarns_attention_factor_is_relative_to_llama_cpps() -> None:
    yarn = {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
        "original_max_position_embeddings": 256,
    }  # fmt: skip
    assert described(yarn, 1024)["rope_scaling_attn_factors"] == pytest.approx(1.0)
    values = described({**yarn, "attention_factor": 2.0, "beta_fast": 16.0}, 1024)
    assert values["rope_scaling_attn_factors"] == pytest.approx(2 / (0.1 * math.log(4) + 1))
    assert values["rope_scaling_yarn_beta_fast"] == 16.0
    assert values["rope_scaling_orig_ctx_len"] == 256


def test_longrope_has_both_lists() -> None:
    spec = ContextSpec(
        {
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8, "original_max_position_embeddings": 256,
        },
        1024,
    )  # fmt: skip
    tensors = rope_tensors(spec, HEAD, "m")
    assert tensors["rope_factors_long.weight"].tolist() == [2.0] * 8
    assert tensors["rope_factors_short.weight"].tolist() == [1.0] * 8


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "has dynamic RoPE"),
        (
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            "only a part of each head",
        ),
        (
            {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "truncate": False,
             "original_max_position_embeddings": 256},
            "YaRN without truncation",
        ),
    ],
)  # fmt: skip
def test_a_rope_that_llama_cpp_does_not_compute_is_refused(
    rope: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        rope_tensors(ContextSpec(rope, 1024), HEAD, "m")
