"""The models of steps are loaded once in a process, not once for each piece of work."""

from __future__ import annotations

import json

import numpy as np
import torch

import regraft
from regraft.data.build import job
from regraft.data.build.read import parts
from regraft.data.build.scoring.causal_scorer import CausalScorer
from regraft.data.build.steps import diversity, long_dependency

RECIPE = """
sources:
  - {name: a, licence: CC0-1.0, jsonl: a.jsonl}
steps:
  - long_dependency: {model: scorer, windows: [2]}
  - diversity: {model: embedder, base: base.jsonl}
output: {tokenizer: bytes}
"""


class Model:
    """A scorer for which all tokens are equal, and embeddings of two numbers."""

    start, context = None, 64

    def ids(self, text):
        return list(text.encode())

    def last(self, texts, count):
        return torch.ones(len(texts), count)

    def embed(self, texts):
        return np.array([[1.0, len(text)] for text in texts], np.float32)


def test_each_model_is_loaded_once_for_all_parts_and_again_by_the_next_build(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("a", 6), ("base", 4)):
        lines = [json.dumps({"text": f"{number} short words " * 3}) for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    loaded, read = [], []
    monkeypatch.setattr(parts, "PART_BYTES", 100)
    for step in (long_dependency.LongDependency, diversity.Diversity):
        monkeypatch.setattr(step, "check", lambda self: None)
    monkeypatch.setattr(CausalScorer, "open", lambda *_: loaded.append("scorer") or Model())

    def open_embedder(*_):
        loaded.append("embedder")
        return Model()

    for module in (diversity, job):  # the map of documents has the embeddings of the step
        monkeypatch.setattr(module, "open_embedder", open_embedder)
    documents = diversity.sources.documents
    monkeypatch.setattr(diversity.sources, "documents", lambda of: read.append(1) or documents(of))
    for _ in range(2):
        record = regraft.build_data("recipe.yaml", "out", overwrite=True)
        assert [step.into.documents for step in record.steps] == [6, 6]
    assert loaded == ["scorer", "embedder"] * 2
    assert len(read) == 2  # of the base corpus
