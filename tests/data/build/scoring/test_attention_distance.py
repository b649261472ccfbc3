"""The reach of the first layer is that of the attention weights which transformers returns."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from evaluated import toy
from toy_reader import joined_shorts, shuffled
from transformers import AutoModelForCausalLM

from regraft.data.build.scoring import attention_distance
from regraft.data.build.scoring.attention_distance import (
    FirstLayer,
    distant_attention,
    standard_scores,
)
from regraft.data.toy_language import IDS, exam_row
from regraft.errors import InputError

CPU = torch.device("cpu")


def direct(model, ids):
    """(DS, DV) from the first layer's weights in float64."""
    with torch.no_grad():
        weights = model(torch.tensor([ids]), output_attentions=True).attentions[0][0]
    length = len(ids)
    apart = torch.arange(length)[:, None] - torch.arange(length)
    far = weights * (apart >= length - 3 * (length // 4))
    return float((far.sum((1, 2)) / length).mean()), float(far.var((1, 2)).mean())


def test_strength_and_variance_are_those_of_the_weights(tmp_path, monkeypatch):
    folder = toy(tmp_path / "toy", seed=3)
    layer = FirstLayer.open(str(folder), CPU)
    assert len(layer._model.model.layers) == 1
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double()
    monkeypatch.setattr(attention_distance, "_BLOCK", 4 * 37 * 5)  # five rows of the weights
    text = np.random.default_rng(0).integers(3, 190, 90).tolist()
    ids = [1, *text]
    result = layer.measure(ids, 37)
    pieces = [[1, *map(int, part)] for part in np.array_split(text, 3)]
    assert [len(piece) for piece in pieces] == [31, 31, 31]
    expected = np.mean([direct(model, piece) for piece in pieces], 0)
    # weights in float32, below 1
    assert result.strength == pytest.approx(expected[0], abs=1e-6)
    assert result.variance == pytest.approx(expected[1], abs=1e-6)
    layer._model.double()  # the softmax of transformers is in float32
    exact = layer.measure(pieces[0], 37)
    assert (exact.strength, exact.variance) == pytest.approx(direct(model, pieces[0]), abs=1e-8)
    assert layer.measure([1, 5], 37) == attention_distance.Distance(0.0, 0.0)
    with pytest.raises(InputError, match="its tokenizer gives token 900"):
        layer.measure([1, 900], 37)


def test_documents_are_compared_by_standard_scores():
    table = np.array([[0.1, 5.0], [0.3, 5.0], [0.5, 8.0]])
    z = (table - table.mean(0)) / table.std(0)
    assert standard_scores(table) == pytest.approx(z[:, 0] - z[:, 1] / 2)
    assert standard_scores(table[:1]).tolist() == [0.0]
    assert standard_scores(np.empty((0, 2))).tolist() == []


def test_a_layer_that_attends_to_equal_words_sees_far_words_of_long_text_but_not_their_order():
    def strength(words):
        ids = torch.tensor([IDS[word] for word in words])
        same = torch.nn.functional.one_hot(ids, len(IDS)).double()[None]
        return distant_attention(same, same, 6.0, len(ids) - 3 * (len(ids) // 4)).strength

    for seed in range(3):
        rng = random.Random(seed)
        real = exam_row(rng, 400, count=16).words
        assert strength(shuffled(rng, real)) > strength(real) > strength(joined_shorts(rng))


def test_nan_is_one_sentence():
    with pytest.raises(InputError, match="computes NaN"):
        distant_attention(torch.full((1, 8, 4), torch.nan), torch.zeros(1, 8, 4), 1.0, 2)
