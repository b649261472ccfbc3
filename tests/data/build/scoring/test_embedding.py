"""Embeddings are the mean of a causal model's hidden states over the first tokens of each text."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluated import toy

from regraft.data.build.scoring import embedding
from regraft.data.build.scoring.embedding import check_embedder, open_embedder
from regraft.data.toy_language import WORDS
from regraft.errors import CheckpointError, InputError


def test_a_models_embedding_is_the_mean_of_its_hidden_states(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "_TOKENS", 12)
    embedder = open_embedder(str(toy(tmp_path / "model")), torch.device("cpu"))
    texts = [" ".join(WORDS[i : i + length]) for i, length in ((3, 5), (20, 30), (40, 0))]
    result = embedder.embed(texts)
    for text, vector in zip(texts, result, strict=True):
        ids = embedder._tokenizer(text)["input_ids"][:12]
        with torch.no_grad():
            hidden = embedder._model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        expected = hidden / hidden.norm()
        torch.testing.assert_close(torch.tensor(vector), expected, rtol=0, atol=1e-5)


def test_a_model2vec_folder_is_read_by_its_package(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"max_length": 512, "normalize": False}))
    monkeypatch.setitem(sys.modules, "model2vec", None)
    with pytest.raises(InputError, match="model2vec is not installed"):
        check_embedder(str(tmp_path))
    model = SimpleNamespace(encode=lambda texts: np.array([[3.0, 4.0]] * len(texts)))
    package = SimpleNamespace(StaticModel=SimpleNamespace(from_pretrained=lambda folder: model))
    monkeypatch.setitem(sys.modules, "model2vec", package)
    vectors = open_embedder(str(tmp_path), torch.device("cpu")).embed(["a", "b"])
    np.testing.assert_allclose(vectors, [[0.6, 0.8]] * 2, rtol=1e-6)


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        check_embedder(str(tmp_path / "none"))
