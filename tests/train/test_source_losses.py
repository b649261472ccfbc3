"""Held-out losses by source are those of transformers, and the mix that they suggest."""

from __future__ import annotations

import json
import math

import pytest
import torch
from train_recipes import LORA, write_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from regraft.checkpoint.read.source import Checkpoint
from regraft.data.rows import hold_out
from regraft.data.sources import Text, documents
from regraft.rope import ContextSpec
from regraft.train.job import RECORD
from regraft.train.recipe.recipe import Recipe
from regraft.train.recipe_mesh import make_mesh
from regraft.train.setup import prepare_run
from regraft.train.source_losses import SourceRows, SpanNll, compare, token_shares
from regraft.train.step.learner import load
from regraft.train.toy_model import write_toy

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_source_has_the_nll_of_transformers_before_and_after(
    trained_model, data_folder, tmp_path
):
    recipe = Recipe.read(write_recipe(tmp_path, data_folder))
    write_toy(tmp_path / "toy", recipe.body.model.toy, recipe.body.seed)
    recorded = json.loads((trained_model / RECORD).read_text())["sources"]
    sources = {
        "short": Text("jsonl", str(data_folder / "short.jsonl")),
        "long": Text("synthetic", "notes", documents=30, words=256, seed=5),
    }
    assert list(recorded) == list(sources)
    tokenizer = AutoTokenizer.from_pretrained(trained_model)
    for name, source in sources.items():
        texts = list(documents(source))
        held_out = hold_out(len(texts), 0.1, 5)[1]
        picked = held_out if name == "long" else held_out[[0, 2, 3]]  # of three, and of four
        for when, folder in (("before", tmp_path / "toy"), ("after", trained_model)):
            model = AutoModelForCausalLM.from_pretrained(folder).eval()
            nll = [nll_of(model, tokenizer, texts[number]) for number in picked]
            for where, span in (("within", slice(0, 64)), ("beyond", slice(64, 256))):
                values = torch.cat([row[span] for row in nll])
                if len(values):
                    assert recorded[name][where]["tokens"] == len(values)
                    # float32 in two layers, NLLs of about 5
                    expected = pytest.approx(float(values.mean()), abs=2e-5)
                    assert recorded[name][where][when] == expected
                else:
                    assert where not in recorded[name]
    card = (trained_model / "README.md").read_text()
    long = recorded["long"]
    assert (
        f"**NLL of long**: {long['within']['before']:.3f} -> {long['within']['after']:.3f}" in card
    )


def nll_of(model, tokenizer, text):
    """NLL of every token after the first, as far as a row of 256 tokens has labels."""
    ids = torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id][:257])[None]
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="none")


def test_each_measurement_is_by_the_rope_that_it_is_given(trained_model, data_folder, tmp_path):
    recipe = Recipe.read(write_recipe(tmp_path, data_folder, LORA, trained_model))
    mesh = make_mesh(recipe.body, "cpu")
    with Checkpoint.open(str(trained_model)) as base:
        run = prepare_run(recipe, mesh, str(trained_model), base)
        learner = load(recipe.body, base, mesh)
    rows = SourceRows(run.corpus, 64)
    expected = rows.measure(learner, run.before)
    other = ContextSpec.from_config({**load_json(trained_model), "rope_parameters": {
        "rope_type": "default", "rope_theta": 20.0}, "rope_theta": 20.0})  # fmt: skip
    assert rows.measure(learner, other) != expected
    assert rows.measure(learner, run.before) == expected
    run.corpus.held_out["short"] = run.corpus.held_out["short"][:0]
    assert SourceRows(run.corpus, 64).measure(learner, run.before) == {}  # one source alone


def load_json(folder):
    """The config.json of a model."""
    return json.loads((folder / "config.json").read_text())


def test_a_source_whose_loss_rose_gets_more_of_the_mix_by_the_published_step():
    before = {"code": [SpanNll(1.0, 9), SpanNll(7.0, 5)], "web": [SpanNll(2.0, 9), None]}
    after = {"code": [SpanNll(0.5, 9), SpanNll(9.0, 5)], "web": [SpanNll(2.3, 9), None]}
    result = compare(before, after, {"code": 0.5, "web": 0.3, "unmeasured": 0.2})
    total = 0.5 + 0.3 * math.exp(0.3) + 0.2  # what fell within the context counts as 0
    assert result["code"].suggested_share == pytest.approx(0.5 / total, abs=1e-6)
    assert result["web"].suggested_share == pytest.approx(0.3 * math.exp(0.3) / total, abs=1e-6)
    assert result["code"].share == 0.5
    assert (result["code"].beyond.before, result["code"].beyond.after) == (7.0, 9.0)
    assert result["web"].beyond is None


def test_shares_are_of_the_tokens_of_all_stages(data_folder, tmp_path):
    recipe = Recipe.read(write_recipe(tmp_path, data_folder))
    shares = token_shares(recipe, [5, 3])  # the second stage was ended early
    short, long = 5 * 4 * 64 + 3 * 2 * 256 / 3, 3 * 2 * 256 * 2 / 3
    assert shares == pytest.approx({"short": short / (short + long), "long": long / (short + long)})
