"""The same YAML through regraft and through mergekit, which runs in one process of its own."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from merge_zoo import EPS, entries, layers, merge
from scripts import Scripts

from regraft.adapters.apply.apply import apply_lora
from regraft.merge.job import merge_models
from regraft.rope import ContextSpec

pytestmark = pytest.mark.usefixtures("in_zoo")


TWO = [
    {"model": "a", "parameters": {"weight": 0.6, "density": [0.35, 0.72]}},
    {"model": "b", "parameters": {"weight": [{"filter": "mlp", "value": 0.5}, {"value": 0.2}]}},
]


RECIPES: dict[str, dict[str, Any]] = {
    "linear": {
        "merge_method": "linear",
        "models": entries("a", weight=0.6) + entries("b", weight="3e-1"),
    },
    "linear with the base among the models": {
        "merge_method": "linear",
        "base_model": "base",
        "models": entries("a", weight=0.6) + entries("base", weight=0.3),
    },
    "slerp with gradients by filter": {
        "merge_method": "slerp",
        "base_model": "a",
        "slices": [{"sources": [layers("a", 0, 4), layers("b", 0, 4)]}],
        "parameters": {
            "t": [
                {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
                {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
                {"value": 0.5},
            ]
        },
    },
    "passthrough layer stack": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [layers("a", 0, 3)]},
            {"sources": [layers("b", 1, 4, scale=[{"filter": "o_proj", "value": 0.0},
                                                {"filter": "down_proj", "value": 0.5},
                                                {"value": 1.0}])]},
        ],
    },
    "several slices, every scope": {
        "merge_method": "linear",
        "slices": [
            {"sources": [layers("a", 0, 2, weight=0.3), layers("b", 2, 4)],
             "parameters": {"weight": [0.2, "8e-1"]}},
            {"sources": [layers("c", 1, 2),
                         layers("b", 0, 1, weight=[{"filter": "mlp", "value": 2}])]},
        ],
        "parameters": {"weight": 1.0, "normalize": False},
    },
    "ties with gradients and filters": {
        "merge_method": "ties",
        "base_model": "base",
        "models": TWO,
        "parameters": {"normalize": True, "density": 0.55, "int8_mask": True},
    },
    "task arithmetic, weights below zero": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "base"}, *entries("a", weight=[0.6, -0.1, 1]),
                   *entries("b", weight=0.4), {"model": "c"}],
        "parameters": {"lambda": 1.1, "weight": 0.25},
    },
    "modules": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "modules": {
            "default": {
                "models": [{"model": "a"}, *entries("b", weight=0.1)],
                "parameters": {"weight": [{"filter": "layers.1", "value": 3}]},
            }
        },
        "parameters": {"weight": 0.25},
    },
    **{
        f"padded embeddings, tokenizer of {source}": {
            "merge_method": "ties",
            "base_model": "base_words",
            "models": entries("a_words", weight=0.6, density=0.4) + entries("b_words", weight=0.4),
            "parameters": {"density": 0.7},
            "tokenizer_source": source,
        }
        for source in ("base", "union", "a_words")
    },
    "tokenizer untouched": {
        "merge_method": "breadcrumbs",
        "base_model": "base",
        "models": entries("a", weight=0.6, density=0.6, gamma=0.05) + entries("b", weight=0.4),
        "parameters": {"density": 0.9, "gamma": 0.01},
    },
}  # fmt: skip


def zoo_recipe(zoo: Path, *names: str) -> Path:
    """A recipe of the mean of two models of the zoo."""
    path = zoo / "merged.yaml"
    named = ", ".join(f"{{model: {zoo / name}}}" for name in names)
    path.write_text(f"merge_method: linear\nmodels: [{named}]\nparameters: {{weight: 0.5}}\n")
    return path


PEER = """
import json, sys
from pathlib import Path
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
options = MergeOptions(
    quiet=True, write_model_card=False, copy_tokenizer=False, lora_merge_cache="lora-cache"
)
for name, recipe in json.loads(Path(sys.argv[1]).read_text()).items():
    run_merge(MergeConfiguration.model_validate(recipe), "peer/" + name, options)
"""


@pytest.fixture(scope="module")
def peer(zoo: Path, scripts: Scripts) -> Path:
    """mergekit's outputs of all RECIPES."""
    if find_spec("mergekit") is None:
        pytest.skip("mergekit is not installed")
    apply_lora(zoo / "lora", zoo / "a", zoo / "applied")
    merge_models(zoo_recipe(zoo, "long", "applied"), zoo / "merged")
    (zoo / "recipes.json").write_text(json.dumps(RECIPES))
    done = scripts.run(PEER, zoo / "recipes.json", cwd=zoo)
    assert done.returncode == 0, done.stderr[-2000:]
    return zoo / "peer"


@pytest.mark.parametrize("name", list(RECIPES))
def test_same_yaml_gives_mergekits_tensors(name: str, peer: Path, tmp_path: Path) -> None:
    ours, theirs = merge(tmp_path, RECIPES[name]), models.load(peer / name)
    base = models.load(Path("base"))
    assert ours.keys() == theirs.keys()
    for key, want in theirs.items():
        assert (ours[key].shape, ours[key].dtype) == (want.shape, want.dtype)
        change = want.norm()
        if key in base:
            change = (want - base[key][: len(want)]).norm()
        allowed = max(1e-5 * float(change), 4 * EPS * float(want.norm()))
        assert float((ours[key] - want).norm()) <= allowed, key
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == json.loads(
        (peer / name / "config.json").read_text()
    )["num_hidden_layers"]  # fmt: skip
    assert config["vocab_size"] == len(ours["model.embed_tokens.weight"])


MOE: dict[str, Any] = {
    "merge_method": "task_arithmetic",
    "base_model": "moe_base",
    "models": entries("moe_a", weight=0.6) + entries("moe_b", weight=0.4),
}


RECIPES["mixture of experts"] = MOE


RECIPES["outputs of apply and merge"] = {
    "merge_method": "linear",
    "models": entries("applied", weight=0.5) + entries("merged", weight=0.5),
}
RECIPES["an extracted adapter"] = {
    "merge_method": "linear",
    "models": entries("a+lora", weight=1.0),
}


def test_mergekit_reads_what_apply_and_merge_wrote(peer: Path) -> None:
    out = peer / "outputs of apply and merge"
    theirs, config = models.load(out), json.loads((out / "config.json").read_text())
    applied, merged = models.load(Path("applied")), models.load(Path("merged"))
    assert theirs.keys() == applied.keys()
    for name, tensor in theirs.items():
        expected = (applied[name] + merged[name]) / 2
        torch.testing.assert_close(
            tensor, expected, rtol=4 * EPS, atol=EPS * float(expected.abs().max())
        )
    context = ContextSpec.from_config(config)
    assert (context.theta, context.max_position_embeddings) == (160000.0, 2048)


def test_mergekit_applies_an_extracted_adapter_as_apply_does(peer: Path) -> None:
    theirs, ours = models.load(peer / "an extracted adapter"), models.load(Path("applied"))
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():  # B A of rank 4 is summed in another order
        torch.testing.assert_close(tensor, ours[name], rtol=8 * EPS, atol=8 * EPS)


def test_elementwise_merges_of_experts_are_mergekits(peer: Path, tmp_path: Path) -> None:
    ours, theirs = merge(tmp_path, MOE), models.load(peer / "mixture of experts")
    for layer in range(2):
        stored = f"model.layers.{layer}.block_sparse_moe.experts."
        for e in range(4):
            w1, w2, w3 = (ours[f"{stored}{e}.{w}.weight"] for w in ("w1", "w2", "w3"))
            joined = f"model.layers.{layer}.mlp.experts."
            torch.testing.assert_close(torch.cat([w1, w3]), theirs[f"{joined}gate_up_proj"][e])
            torch.testing.assert_close(w2, theirs[f"{joined}down_proj"][e])
    assert "mergekit joins" not in (tmp_path / "out" / "README.md").read_text()


def test_ties_trims_each_expert_separately_and_notes_it(tmp_path: Path) -> None:
    oracle = pytest.importorskip("mergekit.merge_methods")
    recipe = {**MOE, "merge_method": "ties", "parameters": {"density": 0.3}}
    with pytest.warns(UserWarning, match="mergekit joins all experts"):
        ours = merge(tmp_path, recipe)
    base, a, b = (models.load(Path(f"moe_{name}")) for name in ("base", "a", "b"))
    parameters = {"weight": [0.6, 0.4], "density": 0.3}

    def mergekits(*tensors: torch.Tensor) -> torch.Tensor:
        return oracle.merge_tensors(tensors, "ties", parameters=parameters, base_index=0)

    names = [f"model.layers.0.block_sparse_moe.experts.{e}.w2.weight" for e in range(4)]
    for name in names:
        torch.testing.assert_close(ours[name], mergekits(base[name], a[name], b[name]))
    joined = mergekits(*(torch.stack([state[name] for name in names]) for state in (base, a, b)))
    moved = [float((joined[e] != base[name]).float().mean()) for e, name in enumerate(names)]
    assert moved[0] < 0.1 < 0.6 < moved[3]  # the one share of all experts goes to the last
    assert "mergekit joins" in (tmp_path / "out" / "README.md").read_text()
