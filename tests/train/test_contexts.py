"""RoPE and length of each stage: a new theta is always reported, the context never shrinks."""

from __future__ import annotations

import json
import math

import pytest
import torch
from train_recipes import LORA, RECIPE, far_nll, write_recipe
from transformers import AutoModelForCausalLM

from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract.extract import extract_lora
from regraft.document import Document
from regraft.errors import InputError
from regraft.rope import ContextSpec, inverse_frequencies, scaling_law
from regraft.rope.longrope import long_factors
from regraft.train.contexts import StageContexts, stage_contexts
from regraft.train.job import train_model
from regraft.train.output.log import read_lines
from regraft.train.recipe.recipe import Recipe
from regraft.train.step.rotary import fix_rotary

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
    assert "theta 500000 -> 283461213 for 256k tokens by the scaling law" in stage.theta_note
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


def test_longrope_keeps_theta_and_has_factors_of_the_recipe_or_the_formula():
    short, long = contexts(
        "{length: 4k, steps: 1}, {length: 64k, steps: 1}", "rope: {family: longrope}\n"
    )
    assert short.first.max_position_embeddings == 8192
    assert short.first.rope_parameters["long_factor"] == [1.0] * 64
    rope = long.first.rope_parameters
    assert (rope["rope_type"], rope["rope_theta"]) == ("longrope", 5e5)
    assert rope["long_factor"] == long_factors(64, 5e5, 8192, 65536)
    assert rope["short_factor"] == [1.0] * 64
    assert rope["original_max_position_embeddings"] == 8192
    assert "the factors of longrope scale" in long.theta_note
    given = ", ".join(["2"] * 64)
    (stage,) = contexts(
        "{length: 64k, steps: 1}", f"rope: {{family: longrope, long_factor: [{given}]}}\n"
    )
    assert stage.first.rope_parameters["long_factor"] == [2.0] * 64


def test_factors_that_cannot_be_used_are_refused():
    line = "{length: 64k, steps: 1}"
    with pytest.raises(InputError, match="has 2 factors; a head of this model rotates 64 pairs"):
        contexts(line, "rope: {family: longrope, long_factor: [1, 2]}\n")
    with pytest.raises(InputError, match="line 4: factors are of longrope"):
        contexts(line, "rope: {family: yarn, long_factor: [1, 2]}\n")


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


def test_longrope_is_trained_carried_and_computed_as_by_transformers(
    trained_model, data_folder, tmp_path
):
    """The model has 256 tokens and gets 512, by factors that differ by pair; its validation at 256
    has the factors of 256."""
    text = RECIPE.replace(
        RECIPE[RECIPE.index("stages:") : RECIPE.index("data:")],
        "stages: [{{length: 512, steps: 1, batch: 1, mix: {{long: 1}}}}]\n",
    ).replace("rope: {{law: scaling}}", "rope: {{family: longrope, long_factor: [1, 1.5, 2, 3]}}")
    text = text.replace("words: 256", "words: 514").replace("rows: 3}}", "rows: 3, length: 256}}")
    extended, adapter, grafted = (tmp_path / name for name in ("extended", "adapter", "grafted"))
    train_model(write_recipe(tmp_path, data_folder, text, trained_model), extended, device="cpu")
    logged = read_lines(extended / "watch.jsonl")[-1]["nll"]["128-256"]
    assert far_nll(extended, words=514) == pytest.approx(logged, abs=2e-5)
    extract_lora(trained_model, extended, adapter, rank=32)
    apply_lora(adapter, trained_model, grafted)
    for folder in (extended, grafted):
        config = json.loads((folder / "config.json").read_text())
        for key in ("rope_parameters", "rope_scaling"):
            assert config[key]["rope_type"] == "longrope"
            assert config[key]["long_factor"] == [1, 1.5, 2, 3]
            assert config[key]["short_factor"] == [1, 1, 1, 1]
        assert config["original_max_position_embeddings"] == 256
        assert config["max_position_embeddings"] == 512
        spec = ContextSpec.from_config(config)
        for length, factors in ((512, [1, 1.5, 2, 3]), (256, [1, 1, 1, 1])):
            frequencies, attention = inverse_frequencies(spec, 8, length)
            theta = config["rope_theta"]
            for i, factor in enumerate(factors):
                assert float(frequencies[i]) == pytest.approx(theta ** (-i / 4) / factor, rel=1e-12)
            assert attention == pytest.approx((1 + math.log(2) / math.log(256)) ** 0.5, rel=1e-12)
            ids = torch.randint(0, 190, (1, length), generator=torch.Generator().manual_seed(0))
            model = AutoModelForCausalLM.from_pretrained(folder).eval()
            with torch.no_grad():
                theirs = model(input_ids=ids).logits
                fix_rotary(model, spec, length)
                ours = model(input_ids=ids).logits
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
