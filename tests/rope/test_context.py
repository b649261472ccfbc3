"""ContextSpec: what a config.json says, in two spellings."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rope_configs import (
    GEMMA_3,
    LLAMA3,
    LLAMA_3,
    LLAMA_31,
    LONG,
    SHORT,
    as_transformers_reads,
    plain,
)

from regraft.errors import CheckpointError, InputError
from regraft.rope import ContextSpec, inverse_frequencies
from regraft.rope.spelling import DEFAULT_THETA, LAYERED, REQUIRED


@pytest.mark.parametrize("type_key", ["type", "rope_type"])
def test_both_spellings_of_one_context_are_equal(type_key: str) -> None:
    scaling = {k: v for k, v in LLAMA3.items() if k != "rope_type"} | {type_key: "llama3"}
    legacy = ContextSpec.from_config({**LLAMA_31, "rope_scaling": scaling})
    modern = ContextSpec.from_config(
        {
            "max_position_embeddings": 131072,
            "rope_parameters": {"rope_theta": 500000, **dict(reversed(LLAMA3.items()))},
        }
    )
    assert legacy == modern
    assert modern.original_max_position_embeddings == 8192
    assert (modern.theta, modern.rope_type) == (500000, "llama3")


@pytest.mark.parametrize(
    "model_type",
    sorted((DEFAULT_THETA.keys() | LAYERED.keys()) - {"", "gemma3"}),
)
def test_a_silent_config_means_what_transformers_takes_it_for(model_type: str) -> None:
    config = {"model_type": model_type, "max_position_embeddings": 4096}
    ours, theirs = ContextSpec.from_config(config), as_transformers_reads(config)
    partial = {"partial_rotary_factor": 1.0} if model_type == "phi3" else {}  # Phi-3 adds it
    assert {**ours.rope_parameters, **partial} == theirs.rope_parameters


def test_silence_is_an_error_where_no_default_is_known() -> None:
    with pytest.raises(CheckpointError, match="rope_theta"):
        ContextSpec.from_config({"model_type": "opt", "max_position_embeddings": 2048})
    with pytest.raises(CheckpointError, match="max_position_embeddings"):
        ContextSpec.from_config({"model_type": "llama"})
    with pytest.raises(CheckpointError, match=r"model_type 'gpt2'.*no RoPE"):
        ContextSpec.from_config({"model_type": "gpt2", "n_positions": 1024})


@pytest.mark.parametrize(
    "config",
    [
        LLAMA_3,
        LLAMA_31,
        {**LLAMA_31, "rope_parameters": {"rope_theta": 500000.0}},
        {"model_type": "llama", "max_position_embeddings": 4096, "rope_theta": 1e6}
        | {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        {**LLAMA_3, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {**LLAMA_3, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
        {**LLAMA_3, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {**LLAMA_3, "partial_rotary_factor": 0.5},
        {**LLAMA_31, "rope_scaling": {k: v for k, v in LLAMA3.items() if "original" not in k}},
        {**LLAMA_31, "rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
        {**LLAMA_3, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e6}}
        | {"rope_theta": None},
        GEMMA_3,
        {"model_type": "gemma3_text", "max_position_embeddings": 32768},
        {**GEMMA_3, "rope_parameters": {"sliding_attention": None, "full_attention": {}}},
        {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}},
        {"model_type": "gemma3", "text_config": {"rope_scaling": GEMMA_3["rope_scaling"]}},
        {"model_type": "olmo3", "max_position_embeddings": 65536, "rope_theta": 500000}
        | {"rope_scaling": {"rope_type": "yarn", "factor": 8, "attention_factor": 1.2}}
        | {"original_max_position_embeddings": 8192},
    ],
    ids=str,
)
def test_reading_agrees_with_transformers(config: dict) -> None:
    ours, theirs = ContextSpec.from_config(config), as_transformers_reads(config)
    assert ours.rope_parameters == theirs.rope_parameters
    assert ours.max_position_embeddings == theirs.max_position_embeddings


@pytest.mark.parametrize(
    ("config", "values"),
    [
        ({**LLAMA_3, "rope_parameters": {"rope_theta": 1e6}}, ("rope_theta", "1000000", "500000")),
        (
            {**LLAMA_31, "rope_parameters": {**LLAMA3, "rope_theta": 5e5, "factor": 16.0}},
            ("factor", "16", "8"),
        ),
        (
            {**LLAMA_31, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            ("rope_type", "default", "llama3"),
        ),
        # transformers 5 takes rope_scaling, drops rope_parameters and falls back to 10000.
        (
            {"max_position_embeddings": 131072, "rope_scaling": LLAMA3}
            | {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
            ("rope_theta", "500000", "10000"),
        ),
        (
            {**LLAMA_31, "original_max_position_embeddings": 4096},
            ("original_max_position_embeddings", "8192", "4096"),
        ),
        (
            {**LLAMA_3, "rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2}},
            ("linear", "yarn", "rope_type"),
        ),
        (
            {**GEMMA_3, "rope_parameters": {"sliding_attention": {"rope_theta": 20000}}},
            ("rope_theta", "20000", "10000"),
        ),
    ],
)
def test_a_contradiction_names_both_values(config: dict, values: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError) as caught:
        ContextSpec.from_config(config)
    assert all(value in str(caught.value) for value in values)


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_type": "llama3", "rope_theta": 1e4, "factor": 8}, "low_freq_factor"),
        ({"rope_type": "linear", "rope_theta": 1e4}, "factor"),
        ({"rope_type": "longrope", "rope_theta": 1e4}, "short_factor and long_factor"),
        ({"rope_theta": "1e4"}, "finite number"),
        ({"rope_theta": float("nan")}, "finite number"),
        ({"rope_theta": 1}, "above 1"),
        ({"rope_type": "default"}, "rope_theta"),
        ({"full_attention": {"rope_type": "yarn"}}, "rope_theta"),
    ],
)
def test_incomplete_parameters_are_refused(rope: dict, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        ContextSpec(rope, 8192)


@pytest.mark.parametrize("length", [0, -1, 8192.5, True, "8k", float("inf")])
def test_a_length_is_a_whole_number(length: object) -> None:
    with pytest.raises(CheckpointError, match="max_position_embeddings"):
        ContextSpec({"rope_theta": 1e4}, length)


def test_what_is_said_or_left_to_the_default_is_one_context() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4, "truncate": None}
    said = {"beta_fast": 32, "beta_slow": 1.0, "truncate": True, "attention_factor": None}
    assert ContextSpec(yarn, 4096) == ContextSpec({**yarn, **said}, 4096)
    assert ContextSpec(yarn, 4096) != ContextSpec({**yarn, "beta_fast": 16}, 4096)


def test_yarn_without_a_factor_takes_the_ratio_of_lengths() -> None:
    config = {**LLAMA_3, "max_position_embeddings": 32768}
    config["rope_scaling"] = {"rope_type": "yarn", "original_max_position_embeddings": 8192}
    assert ContextSpec.from_config(config).rope_parameters["factor"] == 4


@pytest.mark.parametrize("name", ["su", "yarn", "longrope"])
def test_longropes_first_names_are_known(name: str) -> None:
    config = {
        "model_type": "phi3",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": name, "short_factor": SHORT, "long_factor": LONG},
    }
    spec = ContextSpec.from_config(config)
    assert spec.rope_type == "longrope"
    assert spec.original_max_position_embeddings == 4096


def test_a_spec_does_not_share_state_with_its_config() -> None:
    config = json.loads(json.dumps(LLAMA_31))
    spec = ContextSpec.from_config(config)
    written = spec.write_into(config)
    config["rope_scaling"]["factor"] = 2.0
    written["rope_parameters"]["factor"] = 3.0
    written["rope_scaling"]["factor"] = 4.0
    assert spec.rope_parameters["factor"] == 8.0


_KEYS = (
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "short_factor",
    "long_factor", "partial_rotary_factor", "attention_factor", "beta_fast", "beta_slow",
    "truncate", "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor",
    "full_attention", "sliding_attention", "text_config",
)  # fmt: skip


_NUMBERS = st.sampled_from((1, 2, 8, 256, 0, -1, 0.5, 1e-300, 1e300, 2**31, 10**18, 10**90))


_VALUES = st.one_of(
    st.none(), st.booleans(), _NUMBERS, st.sampled_from(("", "a", "yarn", "1")),
    st.lists(_NUMBERS, max_size=8), st.dictionaries(st.sampled_from(("", *_KEYS)), _NUMBERS),
)  # fmt: skip


_FAMILIES = st.fixed_dictionaries(
    {"rope_type": st.sampled_from((*REQUIRED, "su", "a"))},
    optional=dict.fromkeys(_KEYS[2:], _NUMBERS)
    | {key: st.lists(_NUMBERS, min_size=8, max_size=8) for key in ("short_factor", "long_factor")},
)


_BLOCKS = st.one_of(_FAMILIES, st.dictionaries(st.sampled_from(_KEYS), _VALUES), _VALUES)


_CONFIGS = st.fixed_dictionaries(
    {
        "model_type": st.sampled_from(("llama", "gemma3", "olmo3", "phi3", "mixtral", "")),
        "max_position_embeddings": st.one_of(st.just(256), _VALUES),
    },
    optional={
        "rope_parameters": st.one_of(
            _BLOCKS, st.dictionaries(st.sampled_from(("full_attention", "b")), _BLOCKS)
        ),
        "rope_scaling": _BLOCKS,
        **dict.fromkeys(
            ("rope_theta", "partial_rotary_factor", "text_config", "rope_local_base_freq",
             "original_max_position_embeddings"), _VALUES,
        ),
    },
)  # fmt: skip


@given(_CONFIGS)
@settings(max_examples=250)
def test_any_json_is_a_context_with_frequencies_or_a_sentence(config: dict[str, object]) -> None:
    message = ""
    try:
        spec = ContextSpec.from_config(config)
        assert ContextSpec.from_json(spec.to_json()) == spec
        assert ContextSpec.from_config(spec.write_into(config)) == spec
        frequencies, attention = inverse_frequencies(spec, 16)
        assert frequencies.isfinite().all()
        assert math.isfinite(attention)
        assert spec.describe()
    except InputError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": ["yarn"]}, r"rope_type must be the name .*, not \['yarn'\]"),
        ({"type": 3}, "rope_type must be the name"),
        ({"rope_type": "longrope", "short_factor": 3, "long_factor": [1.0]}, "list of numbers"),
        ({"rope_type": "linear", "factor": 0}, "factor of RoPE must be above 0"),
        ({"original_max_position_embeddings": "a"}, "must be a whole number of tokens"),
        ({"partial_rotary_factor": 2}, "1 at most"),
    ],
)
def test_a_setting_of_another_type_is_named(rope: dict[str, object], message: str) -> None:
    config = {"model_type": "llama", "max_position_embeddings": 256, "rope_scaling": rope}
    with pytest.raises(CheckpointError, match=message):
        ContextSpec.from_config(config)


def test_describe_is_one_phrase() -> None:
    assert plain().describe() == "theta 500000, 8k"
    assert ContextSpec.from_config(LLAMA_31).describe() == (
        "llama3 x8 (theta 500000, from 8k), 128k"
    )
    assert ContextSpec.from_config(GEMMA_3).describe() == (
        "full linear x8 (theta 1000000); sliding theta 10000, 128k"
    )
    assert plain(3580165449, 1048576).describe() == "theta 3580165449, 1M"
    layered = ContextSpec({"full_attention": None, "a": {"rope_theta": 1e4}}, 100)
    assert layered.describe() == "full no RoPE; a theta 10000, 100"


def test_theta_needs_no_torch() -> None:
    code = (
        "import sys; from regraft.rope import theta_report, ContextSpec, parse_context\n"
        "theta_report(8192, 262144, 5e5)\n"
        "parse_context('theta=1e6', ContextSpec({'rope_theta': 1e4}, 4096)).describe()\n"
        "assert not {'torch', 'numpy', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
