"""Frequencies of every RoPE family and their tables, against transformers and exact values."""

from __future__ import annotations

import decimal
import json
import math
from decimal import Decimal

import pytest
import torch
from rope_configs import GEMMA_3, HEAD_DIM, LLAMA3, LLAMA_3, LONG, SHORT, plain

from regraft.errors import InputError
from regraft.rope import ContextSpec, inverse_frequencies, longest_wavelength, tables

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
YARN["original_max_position_embeddings"] = 32768
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 4096,
}
CASES = {
    "linear": ({"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, 16384),
    "dynamic": ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, 4096),
    "yarn": (YARN, 131072),
    "yarn betas": ({**YARN, "beta_fast": 16.0, "beta_slow": 2.0}, 131072),
    "yarn not truncated": ({**YARN, "truncate": False}, 131072),
    "yarn attention": ({**YARN, "attention_factor": 1.5}, 131072),
    "yarn attention 0": ({**YARN, "attention_factor": 0.0}, 131072),
    "yarn mscale": ({**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}, 131072),
    "yarn one mscale": ({**YARN, "mscale": 0.7}, 131072),
    "yarn factor 1": ({**YARN, "factor": 1.0}, 32768),
    "yarn tiny original": ({**YARN, "original_max_position_embeddings": 8}, 131072),
    "yarn huge original": ({**YARN, "original_max_position_embeddings": 2**30}, 2**32),
    "yarn equal betas": ({**YARN, "beta_fast": 1.0, "truncate": False}, 131072),
    "llama3": ({**LLAMA3, "rope_theta": 5e5}, 131072),
    "llama3 x32": ({**LLAMA3, "rope_theta": 5e5, "factor": 32.0}, 131072),
    "llama3 steep": ({**LLAMA3, "rope_theta": 5e5, "high_freq_factor": 1.01}, 131072),
    "longrope": (LONGROPE, 131072),
    "longrope factor": ({**LONGROPE, "factor": 8.0}, 131072),
    "longrope attention": ({**LONGROPE, "attention_factor": 1.1}, 131072),
    "longrope not extended": (LONGROPE, 4096),
    "proportional": ({"rope_type": "proportional", "rope_theta": 1e6}, 131072),
    "proportional quarter": (
        {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        131072,
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("partial", [None, 0.5])
@pytest.mark.parametrize("stretch", [0.5, 1, 3])
def test_frequencies_agree_with_transformers(
    name: str, partial: float | None, stretch: float
) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope, length = CASES[name]
    rope = dict(rope)
    if partial is not None:
        rope["partial_rotary_factor"] = partial
        for key in {"short_factor", "long_factor"} & rope.keys():
            rope[key] = rope[key][: HEAD_DIM // 4]
    config = LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=length,
        rope_parameters=json.loads(json.dumps(rope)),
    )
    expected, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, seq_len=int(length * stretch))
    spec = ContextSpec(rope, length)
    result, attention = inverse_frequencies(spec, HEAD_DIM, int(length * stretch))

    assert result.dtype == torch.float64
    assert attention == pytest.approx(scale, rel=1e-12)
    torch.testing.assert_close(result, expected.double(), rtol=3e-6, atol=0)
    if stretch == 1:
        torch.testing.assert_close(inverse_frequencies(spec, HEAD_DIM)[0], result)


def test_plain_frequencies_are_powers_of_theta() -> None:
    result, attention = inverse_frequencies(plain(), 128)
    expected = [500000.0 ** (-2 * i / 128) for i in range(64)]
    assert result.tolist() == pytest.approx(expected, rel=1e-15)
    assert attention == 1.0
    slowest = 2 * math.pi / result[-1].item()
    assert longest_wavelength(500000.0, 128) == pytest.approx(slowest, rel=1e-14)


def test_longrope_is_frozen_from_the_target_length() -> None:
    spec = ContextSpec(LONGROPE, 131072)
    at_target = inverse_frequencies(spec, HEAD_DIM)[0]
    within = inverse_frequencies(spec, HEAD_DIM, 4096)[0]
    ratio = torch.tensor(LONG).double() / torch.tensor(SHORT).double()
    torch.testing.assert_close(within / at_target, ratio, rtol=1e-6, atol=0)
    with pytest.raises(InputError, match="another head size"):
        inverse_frequencies(spec, 128)


def test_layer_types_rotate_as_gemma_3_does() -> None:
    from transformers import Gemma3TextConfig
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

    spec = ContextSpec.from_config(GEMMA_3)
    module = Gemma3RotaryEmbedding(
        Gemma3TextConfig.from_dict({**GEMMA_3, "head_dim": HEAD_DIM, "num_hidden_layers": 6})
    )
    for kind in ("full_attention", "sliding_attention"):
        expected = getattr(module, f"{kind}_inv_freq").double()
        result = inverse_frequencies(spec, HEAD_DIM, layer_type=kind)[0]
        torch.testing.assert_close(result, expected, rtol=3e-6, atol=0)
    default = inverse_frequencies(spec, HEAD_DIM)[0]
    assert torch.equal(default, inverse_frequencies(spec, HEAD_DIM, layer_type="full_attention")[0])
    with pytest.raises(InputError, match="chunked"):
        inverse_frequencies(spec, HEAD_DIM, layer_type="chunked")


def test_an_unknown_family_is_carried_but_not_computed() -> None:
    config = {**LLAMA_3, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    spec = ContextSpec.from_config(config)
    assert ContextSpec.from_config(spec.write_into(config)) == spec
    with pytest.raises(InputError, match="'mrope' has no formula"):
        inverse_frequencies(spec, HEAD_DIM)


# Tables


def exact(theta: int, dim: int, pair: int, position: int) -> tuple[float, float]:
    """cos and sin of an angle formed in 60 decimal digits."""
    with decimal.localcontext(prec=60):
        pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
        frequency = (Decimal(theta).ln() * Decimal(-2 * pair) / Decimal(dim)).exp()
        angle = float((position * frequency) % (2 * pi))
    return math.cos(angle), math.sin(angle)


@pytest.mark.parametrize("theta", [500000, 45_200_000_000])
def test_tables_are_exact_at_four_million_tokens_and_beyond(theta: int) -> None:
    dim = 128
    positions = torch.tensor([0, 1, 131071, 1048575, 2**22 - 1, 2**25 + 1])
    cos, sin = tables(plain(theta, 2**22), dim, positions)
    assert cos.dtype == sin.dtype == torch.float32
    assert cos.shape == (6, dim)
    frequencies = inverse_frequencies(plain(theta), dim)[0]
    in_float32 = (positions.float()[:, None] * frequencies.float()).cos()

    worst = worst_in_float32 = 0.0
    for row, position in enumerate(positions.tolist()):
        for pair in range(dim // 2):
            c, s = exact(theta, dim, pair, position)
            worst = max(worst, abs(cos[row, pair] - c), abs(sin[row, pair] - s))
            worst_in_float32 = max(worst_in_float32, abs(in_float32[row, pair] - c))
    assert worst < 1e-7
    assert worst_in_float32 > 0.05


def test_tables_have_transformers_layout_and_attention_factor() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=2,
        max_position_embeddings=131072,
        rope_parameters={**YARN, "attention_factor": 1.25},
    )
    positions = torch.tensor([[0, 1, 5], [7, 100, 2]])
    expected = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    spec = ContextSpec(config.rope_parameters, 131072)
    for result, other in zip(tables(spec, HEAD_DIM, positions), expected, strict=True):
        assert result.shape == (2, 3, HEAD_DIM)
        torch.testing.assert_close(result, other, atol=2e-5, rtol=0)
