"""RoPE and length of each stage: a new theta is always reported, the context never shrinks."""

from __future__ import annotations

import json

import pytest
from train_recipes import LORA, write_recipe

from regraft.document import Document
from regraft.errors import InputError
from regraft.rope import ContextSpec, scaling_law
from regraft.train.contexts import StageContexts, stage_contexts
from regraft.train.job import train_model
from regraft.train.recipe.recipe import Recipe

CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "rope_theta": 5e5,
    "max_position_embeddings": 8192,
}
LONGROPE = {
    **CONFIG,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 8192,
    "rope_scaling": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 64,
        "long_factor": [2.0] * 64,
    },
}


def contexts(stages: str, more: str = "", config: dict = CONFIG) -> list[StageContexts]:
    text = f"model: org/base\nstages: [{stages}]\ndata: {{sources: [{{name: a, text: x}}]}}\n{more}"
    return stage_contexts(Recipe(Document("r.yaml", text)), "org/base", config)


def test_a_longer_stage_takes_the_scaling_law_by_default_and_reports_it():
    (stage,) = contexts("{length: 256k, steps: 1}")
    assert stage.first.theta == round(scaling_law(5e5, 8192, 262144)) == 283461213
    assert stage.first.max_position_embeddings == 262144
    assert "theta 500000 -> 2.83461e+08 for 256k tokens by the scaling law" in stage.theta_note
    assert "the default" in stage.theta_note


def test_theta_stays_only_where_the_recipe_states_it():
    (stage,) = contexts("{length: 256k, steps: 1}", "rope: {law: keep}\n")
    assert (stage.first.theta, stage.first.max_position_embeddings) == (5e5, 262144)
    assert stage.theta_note == "theta stays 500000 (rope: {law: keep})"


def test_the_theta_of_the_stage_overrides_every_law():
    (stage,) = contexts("{length: 64k, theta: 1e7, steps: 1}", "rope: {law: ntk}\n")
    assert (stage.first.theta, stage.theta_note) == (1e7, None)


@pytest.mark.parametrize("family", ["yarn", "linear", "llama3"])
def test_a_family_with_a_factor_keeps_theta(family):
    (stage,) = contexts("{length: 64k, steps: 1}", f"rope: {{family: {family}}}\n")
    assert (stage.first.rope_type, stage.first.theta) == (family, 5e5)
    assert stage.first.rope_parameters["factor"] == 8
    assert f"the factor of {family} scales" in stage.theta_note


@pytest.mark.parametrize("config", [CONFIG, LONGROPE])
@pytest.mark.parametrize("length", ["512", "8k"])
def test_short_rows_leave_rope_and_context_as_they_are(config, length):
    (stage,) = contexts(f"{{length: {length}, steps: 1}}", config=config)
    assert stage.first == ContextSpec.from_config(config)
    assert stage.theta_note is None


def test_a_short_stage_after_a_long_one_keeps_its_context():
    long, short = contexts("{length: 256k, steps: 1}, {length: 4k, steps: 1}")
    assert short.first == long.first
    between = contexts("{length: 256k, steps: 1}, {length: 64k, steps: 1}")[1]
    assert between.first == long.first
    own = contexts("{length: 256k, steps: 1}, {length: 4k, theta: 3e8, steps: 1}")[1]
    assert (own.first.theta, own.first.max_position_embeddings) == (3e8, 262144)


def test_a_fallback_that_is_the_first_theta_is_refused():
    line = "{length: 64k, theta: 1e7, fallback: [2e7], steps: 1}"
    (stage,) = contexts(line, "watch: {stop: true}\n")
    assert [spec.theta for spec in stage.attempts] == [1e7, 2e7]
    theta = round(scaling_law(5e5, 8192, 65536))
    with pytest.raises(InputError, match="leave it out"):
        contexts(f"{{length: 64k, fallback: [{theta}], steps: 1}}", "watch: {stop: true}\n")


def test_a_recovery_stays_within_the_context():
    (stage,) = contexts("{length: 512, steps: 1}", "method: recover\n")
    assert stage.first == ContextSpec.from_config(CONFIG)
    with pytest.raises(InputError, match=r"line 2: org/base has a context of 8k tokens"):
        contexts("{length: 64k, steps: 1}", "method: recover\n")


def test_a_short_fine_tune_leaves_the_context_of_model_and_adapter(
    trained_model, data_folder, tmp_path
):
    """The model has 256 tokens; the only stage has 64."""
    text = LORA.replace(LORA[LORA.index("  - {{length: 256") : LORA.index("data:")], "")
    record = train_model(
        write_recipe(tmp_path, data_folder, text, trained_model), tmp_path / "adapter", device="cpu"
    )
    before = json.loads((trained_model / "config.json").read_text())
    assert record.context.stages == [record.context.base]
    written_record = json.loads((tmp_path / "adapter" / "regraft.json").read_text())
    context = written_record["context"]
    assert context["extended"] == context["base"]
    assert context["extended"]["max_position_embeddings"] == 256
    model = write_recipe(tmp_path, data_folder, text + "export: {{kind: model}}\n", trained_model)
    train_model(model, tmp_path / "model", device="cpu")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    for key in ("max_position_embeddings", "rope_theta"):
        assert config[key] == before[key]
