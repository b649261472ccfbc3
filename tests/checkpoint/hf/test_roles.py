"""Roles of tensors, against real state dicts of tiny random models."""

from __future__ import annotations

import pytest
import torch

from regraft.checkpoint.hf.roles import Role, has_tied_head, tensor_roles, unknown_tensors
from regraft.errors import CheckpointError

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
TWO_NORMS = {"input_layernorm", "post_attention_layernorm"}
FOUR_NORMS = TWO_NORMS | {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
FAMILIES = {  # model_type: (class, norms of a layer, leaves with a bias)
    "llama": ("LlamaForCausalLM", TWO_NORMS, set()),
    "mistral": ("MistralForCausalLM", TWO_NORMS, set()),
    "qwen2": ("Qwen2ForCausalLM", TWO_NORMS, {"q_proj", "k_proj", "v_proj"}),
    "qwen3": ("Qwen3ForCausalLM", TWO_NORMS | {"q_norm", "k_norm"}, set()),
    "gemma": ("GemmaForCausalLM", TWO_NORMS, set()),
    "gemma2": ("Gemma2ForCausalLM", FOUR_NORMS, set()),
    "gemma3_text": ("Gemma3ForCausalLM", FOUR_NORMS | {"q_norm", "k_norm"}, set()),
}


def config_of(family: str, **changes: object) -> dict:
    return {"model_type": family, "architectures": [FAMILIES[family][0]], **TINY, **changes}


def state_names(config: dict) -> list[str]:
    import transformers

    model_class = getattr(transformers, config["architectures"][0])
    return list(model_class(model_class.config_class.from_dict(config)).state_dict())


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_real_model_has_its_role(family: str, tie: bool) -> None:
    config = config_of(family, tie_word_embeddings=tie)
    names = state_names(config)
    result = tensor_roles(config, names)
    _, norms, biased = FAMILIES[family]

    assert list(result) == names
    assert unknown_tensors(config, names) == []
    assert "other" not in {role.kind for role in result.values()}
    for layer in (0, 1):
        inside = [role for role in result.values() if role.layer == layer]
        assert {r.leaf for r in inside if r.kind == "projection"} == ATTENTION | MLP
        assert {r.leaf for r in inside if r.kind == "norm"} == norms
        assert {r.leaf for r in inside if r.kind == "bias"} == biased
        for role in inside:
            expected = "mlp" if role.leaf in MLP else "self_attn"
            assert role.block == ("" if "layernorm" in role.leaf else expected)
    outside = {name: role.kind for name, role in result.items() if role.layer is None}
    assert outside == {
        "model.embed_tokens.weight": "embedding",
        "model.norm.weight": "norm",
        "lm_head.weight": "head",
    }
    assert has_tied_head(config) is tie


def test_silence_about_tying_means_what_the_class_means() -> None:
    assert has_tied_head(config_of("gemma")) is True
    assert has_tied_head(config_of("llama")) is False


def test_module_is_the_path_peft_would_address() -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    assert tensor_roles(config_of("llama"), [name])[name] == Role(
        "projection", "model.layers.1.self_attn.q_proj", "q_proj", 1, "self_attn"
    )


@pytest.mark.parametrize(
    "spelling",
    [
        "layers.1.mlp.up_proj.weight",
        "language_model.model.layers.1.mlp.up_proj.weight",
        "model.language_model.layers.1.mlp.up_proj.weight",
    ],
)
def test_wrapping_prefixes_do_not_hide_a_tensor(spelling: str) -> None:
    role = tensor_roles(config_of("llama"), [spelling])[spelling]
    assert (role.kind, role.module) == ("projection", "model.layers.1.mlp.up_proj")


def test_text_names_are_found_in_a_multimodal_model() -> None:
    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": config_of("gemma3_text"),
        "vision_config": {"hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 32},
    }
    name = "language_model.model.layers.1.mlp.up_proj.weight"  # as Gemma 3 was published
    role = tensor_roles(config, [name])[name]
    assert (role.kind, role.layer, role.block) == ("projection", 1, "mlp")
    assert role.module == "model.language_model.layers.1.mlp.up_proj"


def test_old_rotary_buffers_are_other_and_not_unknown() -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert tensor_roles(config_of("llama"), [name])[name].kind == "other"
    assert unknown_tensors(config_of("llama"), [name]) == []


def test_names_the_model_has_no_place_for_are_listed() -> None:
    names = ["model.layers.2.mlp.up_proj.weight", "model.norm.weight", "wte.weight"]
    assert unknown_tensors(config_of("llama"), names) == [names[0], names[2]]
    assert tensor_roles(config_of("llama"), names)["wte.weight"].kind == "other"


def test_expert_stacks_are_other_in_both_spellings() -> None:
    config = config_of("llama") | {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 2,
    }
    names = [
        "model.layers.0.block_sparse_moe.experts.0.w1.weight",
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.block_sparse_moe.gate.weight",
    ]
    result = tensor_roles(config, names)
    assert {role.kind for role in result.values()} == {"other"}
    assert result[names[0]] == result[names[1]]
    assert result[names[1]].leaf == "gate_up_proj"
    assert unknown_tensors(config, names) == []


def test_a_config_without_architectures_is_a_causal_model() -> None:
    config = {k: v for k, v in config_of("qwen3").items() if k != "architectures"}
    assert tensor_roles(config, ["lm_head.weight"])["lm_head.weight"].kind == "head"


def test_the_authors_attention_kernel_is_not_needed() -> None:
    config = config_of("llama", _attn_implementation="flash_attention_2")
    assert tensor_roles(config, ["lm_head.weight"])["lm_head.weight"].kind == "head"


def test_a_large_model_costs_no_memory() -> None:
    config = config_of("llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80)
    name = "model.layers.79.mlp.down_proj.weight"
    assert tensor_roles(config, [name])[name].layer == 79


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": None}, "model_type"),
        ({"model_type": "nosuch"}, "does not know model_type 'nosuch'; regraft"),
        ({"model_type": "nosuch", "auto_map": {}}, "without the checkpoint's own code"),
        ({"num_hidden_layers": "many"}, "refuses config.json.*num_hidden_layers"),
        ({"dtype": torch.bfloat16}, "not JSON"),
    ],
)
def test_an_unusable_config_is_explained_in_a_sentence(change: dict, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        tensor_roles(config_of("llama", **change), ["lm_head.weight"])
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
