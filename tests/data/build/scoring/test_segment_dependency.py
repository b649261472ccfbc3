"""The long dependency score is the one computed pair by pair in float64."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
import torch
from evaluated import toy
from toy_reader import Reader, joined_shorts, shuffled

from regraft.data.build.scoring import segment_dependency
from regraft.data.build.scoring.causal_scorer import CausalScorer
from regraft.data.build.scoring.segment_dependency import (
    combine,
    draw_pairs,
    measure,
    specificity,
)
from regraft.data.toy_language import IDS, exam_row


def test_the_score_is_that_of_a_direct_computation(tmp_path, monkeypatch):
    monkeypatch.setattr(segment_dependency, "_LEAST", 0.0)  # a random model has no strong pairs
    scorer = CausalScorer.open(str(toy(tmp_path / "toy", seed=3)), torch.device("cpu"))
    ids = [1, *np.random.default_rng(0).integers(3, 190, 8 * 5 + 3).tolist()]
    result = measure(scorer, ids, segment=8, pairs=100, rng=np.random.default_rng(0))
    parts = [ids[1 + at : 9 + at] for at in range(0, 40, 8)]
    model = scorer._model.double()

    def perplexity(number, before):
        text = torch.tensor([[1, *before, *parts[number]]])
        with torch.no_grad():
            logs = model(input_ids=text).logits[0, :-1].log_softmax(-1)
        return float(torch.exp(-logs.gather(1, text[0, 1:, None])[-7:].mean()))

    alone = [perplexity(i, []) for i in range(5)]
    total = 0.0
    for i in range(1, 5):
        gains = np.array([alone[i] - perplexity(i, parts[j]) for j in range(i)])
        weights = np.exp(gains) / np.exp(gains).sum()
        entropy = -(weights * np.log(weights)).sum()
        specific = 1.0 if i == 1 else 1 - entropy / np.log(i)
        for j in range(i):
            strength = gains[j] / alone[i]
            total += (strength + (i - j) / 4) * specific if strength > 0 else 0.0
    assert result.pairs == 10
    assert total > 0
    # float32 NLLs of two layers: perplexities of about 200 are right to 1e-3
    assert result.score == pytest.approx(total / 10, abs=1e-3)


def test_a_pair_scores_its_strength_and_distance_where_it_is_specific():
    alone = {1: 10.0, 3: 10.0}
    result = combine(alone, {(1, 0): 5.0, (3, 0): 5.0, (3, 2): -40.0 + 5.0}, 5)
    one_of_two = specificity(np.array([5.0, 45.0]))
    assert one_of_two == pytest.approx(1, abs=1e-9)
    scores = [(0.5 + 1 / 4) * 1, (0.5 + 3 / 4) * one_of_two, (4.5 + 1 / 4) * one_of_two]
    assert result.score == pytest.approx(sum(scores) / 3)
    assert combine({1: 10.0}, {(1, 0): 9.5}, 2).score == 0  # too weak
    assert combine({2: 10.0}, {(2, 0): 5.0, (2, 1): 5.0}, 3).score == 0  # helped by any text


def test_pairs_are_drawn_without_repetition_and_all_where_they_are_few():
    rng = np.random.default_rng(0)
    assert draw_pairs(5, 10, rng) == [(i, j) for i in range(5) for j in range(i)]
    drawn = draw_pairs(100, 50, rng)
    assert len(set(drawn)) == 50
    assert all(0 <= j < i < 100 for i, j in drawn)
    assert set(drawn) <= {(i, j) for j, i in combinations(range(100), 2)}
    assert draw_pairs(1, 5, rng) == draw_pairs(0, 5, rng) == []


def test_real_long_text_beats_concatenated_shorts_but_not_shuffled_sentences():
    def score(words):
        ids = [IDS[word] for word in words]
        return measure(Reader(), ids, segment=32, pairs=500, rng=np.random.default_rng(0)).score

    scrambled = []
    for seed in range(3):
        rng = random.Random(seed)
        real = exam_row(rng, 400, count=16).words
        scrambled.append(score(shuffled(rng, real)) / score(real))
        assert score(real) > 2 * score(joined_shorts(rng))
    assert min(scrambled) < 1 < max(scrambled)  # which sentence follows which is not seen
