"""A training recipe on a toy model in two stages, and what tests read of its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from regraft.data.rows import hold_out
from regraft.data.sources import Text, documents
from regraft.train.output.log import read_lines

RECIPE = """
model: {model}
method: full
rope: {{law: scaling}}
stages:
  - {{length: 64, steps: 5, batch: 4, rate: 3e-3, mix: {{short: 1}}}}
  - {{length: 256, steps: 5, batch: 2, rate: 1e-3, mix: {{long: 2, short: 1}}}}
data:
  cache: {cache}
  held_out: 0.1
  sources:
    - {{name: short, jsonl: {short}, rows: packed}}
    - {{name: long, synthetic: notes, words: 256, documents: 30}}
memory: {{rows: 2}}
schedule: {{warmup: 2}}
watch: {{every: 3, rows: 3}}
save_every: 3
seed: 5
"""
LORA = RECIPE.replace(
    "method: full", "method: lora\nlora: {{rank: 4, alpha: 16, rslora: true, norms: true}}"
).replace("steps: 5", "steps: 2")
TOY = "{toy: {length: 64, theta: 70, hidden: 32, intermediate: 48}}"


def write_recipe(
    folder: Path, data_folder: Path, text: str = RECIPE, model: str | Path = TOY
) -> Path:
    """folder/recipe.yaml, whose text is in `data_folder` (the fixture of that name)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    cache, short = data_folder / "cache", data_folder / "short.jsonl"
    path.write_text(text.format(model=model, cache=cache, short=short), "utf-8")
    return path


def read_losses(folder: Path) -> list[Any]:
    """The columns of metrics.jsonl that do not depend on the clock."""
    return [
        [line[key] for key in ("step", "stage", "loss", "tokens", "gradient", "rate")]
        for line in read_lines(folder / "metrics.jsonl")
    ]


def far_nll(folder: Path, words: int) -> float:
    """NLL by transformers at positions 128 to 256 of the held-out documents of `words` words."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = list(documents(Text("synthetic", "notes", documents=30, words=words, seed=5)))
    held_out = hold_out(30, 0.1, 5)[1]
    assert len(held_out) == 3
    nll = []
    for document in held_out:
        ids = [*tokenizer(texts[document])["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor(ids[:257])[None]
        with torch.no_grad():
            logits = model(input_ids=ids[:, :-1]).logits
        nll.append(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="none"))
    return float(torch.cat([row[128:] for row in nll]).mean())
