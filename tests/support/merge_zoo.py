"""Small models to merge, and how tests write and run recipes on them."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import models
import torch
import yaml
from refusals import refusal_of

from regraft.merge.job import merge_models

CONFIG = {**models.LLAMA, "num_hidden_layers": 4}
EPS = 2**-24  # half an ulp of float32, relative
MIXTRAL = {
    **models.LLAMA,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
WORDS = 70  # of the tokenizer; the embeddings have 80 rows


def tokenizer(words: dict[str, int]) -> str:
    """A tokenizer.json that the tokenizers library reads."""
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
        "decoder": None, "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    })  # fmt: skip


def give_tokenizer(folder: Path, words: dict[str, int]) -> None:
    """Add a tokenizer with these words to a model."""
    (folder / "tokenizer.json").write_text(tokenizer(words))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"})
    )


def experts(seed: int) -> dict[str, torch.Tensor]:
    """The weights of a Mixtral: seed 0 the base, another a model whose later experts changed
    more."""
    state = models.weights({**models.LLAMA})
    generator = torch.Generator().manual_seed(50)
    moved = torch.Generator().manual_seed(seed)
    for layer in range(2):
        for name in ("gate", "up", "down"):
            del state[f"model.layers.{layer}.mlp.{name}_proj.weight"]
        prefix = f"model.layers.{layer}.block_sparse_moe."
        shapes = {f"experts.{e}.{w}.weight": (64, 96) if w == "w2" else (96, 64)
                  for e in range(4) for w in ("w1", "w2", "w3")}  # fmt: skip
        for name, shape in {"gate.weight": (4, 64), **shapes}.items():
            value = 0.1 * torch.randn(shape, generator=generator)
            size = 0.01 * (1 + int(name.split(".")[1])) if "experts" in name else 0.01
            noise = torch.randn(shape, generator=moved)
            state[prefix + name] = value + size * noise if seed else value
    return state


def write_recipe(folder: Path, recipe: dict[str, Any] | str) -> Path:
    """folder/recipe.yaml."""
    path = folder / "recipe.yaml"
    text = recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, sort_keys=False)
    path.write_text(textwrap.dedent(text))
    return path


def merge(folder: Path, recipe: dict[str, Any] | str, **options: Any) -> dict[str, torch.Tensor]:
    """The tensors of the merge by the recipe, which is written to folder/out."""
    merge_models(write_recipe(folder, recipe), folder / "out", **options)
    return models.load(folder / "out")


def refusal(folder: Path, recipe: dict[str, Any] | str, **options: Any) -> str:
    """The one line with which the recipe is refused, before anything is written."""
    message = refusal_of(merge_models, write_recipe(folder, recipe), folder / "out", **options)
    assert not (folder / "out").exists()
    return message


def entries(*names: str, **parameters: Any) -> list[dict[str, Any]]:
    """A recipe's `models`, all with the same parameters."""
    return [{"model": name, "parameters": parameters} for name in names]


def layers(model: str, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
    """A source of a recipe's slice."""
    return {"model": model, "layer_range": [start, stop], "parameters": parameters}


LONG_TIES: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "base",
    "models": entries("a", "b", weight=0.5, density=0.6) + entries("lora", weight=1.0),
    "context": {"from": "lora"},
}
