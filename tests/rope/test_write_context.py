"""A context written into a config.json, in both spellings."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rope_configs import GEMMA_3, LLAMA3, LLAMA_3, LONG, SHORT, as_transformers_reads, plain

from regraft.errors import InputError
from regraft.rope import ContextSpec, extend_context

NUMBERS = st.floats(1.0, 64.0)


THETAS = st.floats(100.0, 1e11) | st.integers(100, 10**11)


LENGTHS = st.integers(64, 2**23)


@st.composite
def raw_configs(draw: st.DrawFn) -> dict:
    """A flat config.json in one of the spellings found in the wild."""
    original = draw(LENGTHS)
    families = {
        "default": {},
        "linear": {"factor": draw(NUMBERS)},
        "dynamic": {"factor": draw(NUMBERS)},
        "yarn": {"factor": draw(NUMBERS), "original_max_position_embeddings": original}
        | draw(st.sampled_from([{}, {"beta_fast": 16}, {"truncate": False}, {"mscale": 0.7}])),
        "llama3": {**LLAMA3, "original_max_position_embeddings": original},
        "longrope": {"short_factor": SHORT, "long_factor": LONG}
        | draw(st.sampled_from([{}, {"factor": 3.5}, {"attention_factor": 1.25}])),
    }
    kind = draw(st.sampled_from(list(families)))
    block = families[kind]
    config: dict = {"model_type": "llama", "hidden_size": 128, "num_attention_heads": 2}
    config["max_position_embeddings"] = draw(LENGTHS)
    if kind == "longrope" or draw(st.booleans()):
        config["original_max_position_embeddings"] = original
    if draw(st.booleans()):
        config["partial_rotary_factor"] = draw(st.sampled_from([0.5, 1.0]))
    theta = draw(THETAS)
    if draw(st.booleans()):
        return config | {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **block}}
    config["rope_theta"] = theta
    if kind != "default":
        name = draw(st.sampled_from(["type", "rope_type"]))
        config["rope_scaling"] = {key: value for key, value in block.items() if key != "rope_type"}
        config["rope_scaling"][name] = kind
    return config


@given(raw_configs(), raw_configs())
def test_what_is_written_is_what_is_read(source: dict, target: dict) -> None:
    spec = ContextSpec.from_config(source)
    written = spec.write_into(target)
    assert ContextSpec.from_config(written) == spec
    assert spec.write_into(written) == written
    legacy_reader = {k: v for k, v in written.items() if k != "rope_parameters"}
    assert ContextSpec.from_config(legacy_reader) == spec
    modern_reader = {k: v for k, v in written.items() if k not in ("rope_theta", "rope_scaling")}
    assert ContextSpec.from_config(modern_reader) == spec
    present = [key for key in target if key in written]
    assert list(written)[: len(present)] == present
    assert ContextSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@settings(max_examples=25)
@given(raw_configs())
def test_transformers_reads_what_is_written(source: dict) -> None:
    spec = ContextSpec.from_config(source)
    assert as_transformers_reads(spec.write_into(source)) == spec


def test_writing_keeps_key_order_and_everything_else() -> None:
    target = {"rope_theta": 1.0, "vocab_size": 7, "max_position_embeddings": 5, "model_type": "x"}
    written = plain(2e6, 4096).write_into(target)
    assert list(written) == [*target, "rope_parameters", "rope_scaling"]
    assert written["vocab_size"] == 7
    assert written["rope_scaling"] is None
    assert target["rope_theta"] == 1.0


def test_gemma_3_keeps_a_theta_per_layer_type() -> None:
    spec = ContextSpec.from_config(GEMMA_3)
    written = extend_context(spec, theta=8e6).write_into(GEMMA_3)
    assert written["rope_theta"] == 8e6
    assert written["rope_local_base_freq"] == 10000
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert written["rope_parameters"] == {
        "full_attention": {"rope_type": "linear", "rope_theta": 8e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    assert as_transformers_reads(written) == ContextSpec.from_config(written)
    inner = spec.write_into({"model_type": "gemma3", "text_config": {"hidden_size": 8}})
    assert list(inner) == ["model_type", "text_config"]
    assert ContextSpec.from_config(inner) == spec


def test_a_partial_rotation_of_one_layer_type_stays_there() -> None:
    full = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
    spec = ContextSpec({"full_attention": full, "sliding_attention": {"rope_theta": 1e4}}, 131072)
    written = spec.write_into({**GEMMA_3, "partial_rotary_factor": 0.5})
    assert as_transformers_reads(written) == ContextSpec.from_config(written) == spec
    shared = {k: v for k, v in GEMMA_3.items() if k != "rope_scaling"}
    read = ContextSpec.from_config({**shared, "partial_rotary_factor": 0.5})
    assert {r["partial_rotary_factor"] for r in read.rope_parameters.values()} == {0.5}


def test_layered_and_shared_rope_do_not_mix() -> None:
    with pytest.raises(InputError, match="RoPE per layer type"):
        plain().write_into(GEMMA_3)
    with pytest.raises(InputError, match="one RoPE for all layers"):
        ContextSpec.from_config(GEMMA_3).write_into(LLAMA_3)


def test_phi_3_gets_the_three_keys_its_old_class_accepts() -> None:
    config = {
        "model_type": "phi3",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
    }
    written = ContextSpec.from_config(config).write_into(config)
    assert written["rope_scaling"] == config["rope_scaling"]
    assert written["original_max_position_embeddings"] == 4096
