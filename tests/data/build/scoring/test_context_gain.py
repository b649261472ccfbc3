"""The gain from distant context is the one computed token by token, and copies do not count."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from evaluated import toy
from toy_reader import Reader, joined_shorts, shuffled

from regraft.data.build.scoring.causal_scorer import CausalScorer
from regraft.data.build.scoring.context_gain import answer_nll, copies, measure, summarise, windowed
from regraft.data.toy_language import IDS, exam_row

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return CausalScorer.open(str(toy(tmp_path_factory.mktemp("scorer"), seed=3)), CPU)


def direct(scorer, context, token):
    """NLL of one token after `context`, from the model's own logits."""
    with torch.no_grad():
        logits = scorer._model(input_ids=torch.tensor([list(context)])).logits[0, -1]
    return float(-logits.log_softmax(-1)[token])


def random_ids(count, seed=0):
    return [1, *np.random.default_rng(seed).integers(3, 190, count - 1).tolist()]


def test_chunks_with_a_cache_give_the_nll_of_one_forward(scorer, monkeypatch):
    monkeypatch.setattr("regraft.data.build.scoring.causal_scorer._CHUNK", 7)
    monkeypatch.setattr("regraft.data.build.scoring.causal_scorer._LOGITS", 2 * 5 * 194)
    texts = [random_ids(40, 1), random_ids(40, 2)]
    for count in (1, 6, 20, 39):
        result = scorer.last(texts, count)
        expected = [
            [direct(scorer, text[:at], text[at]) for at in range(40 - count, 40)] for text in texts
        ]
        # float32, 2 layers, NLLs of about 5: rounding is some 1e-6
        torch.testing.assert_close(result, torch.tensor(expected), rtol=0, atol=5e-5)


def test_windowed_nll_is_that_of_the_blocks(scorer):
    ids, window, start = random_ids(60), 8, 30
    result = windowed(scorer, ids, start, window)
    for at in range(start, 60):
        block = start + (at - start) // 4 * 4  # blocks of half a window
        context = [ids[0], *ids[block - window : at]]
        assert window <= len(context) - 1 < 1.5 * window
        assert result[at - start] == pytest.approx(direct(scorer, context, ids[at]), abs=5e-5)


def test_the_gain_is_the_mean_difference_of_the_second_half(scorer):
    ids = random_ids(64)
    gain = measure(scorer, ids, [8], context=64, run=8)[8]
    full = [direct(scorer, ids[:at], ids[at]) for at in range(32, 64)]
    short = windowed(scorer, ids, 32, 8)
    assert gain.mean == pytest.approx(float(np.mean(short - full)), abs=5e-5)
    assert (gain.copied, gain.tokens) == (0.0, 32)


def test_a_document_within_the_window_has_no_gain(scorer):
    gains = measure(scorer, random_ids(30), [40], context=64, run=8)
    assert (gains[40].mean, gains[40].key) == (0.0, 0.0)
    assert measure(scorer, [1], [40], context=64, run=8)[40].tokens == 0


def test_a_long_document_is_measured_in_pieces(scorer):
    ids = random_ids(150)
    whole = measure(scorer, ids, [8], context=64, run=8)[8]
    pieces = [[1, *part] for part in np.array_split(ids[1:], 3)]
    parts = [measure(scorer, list(map(int, p)), [8], context=64, run=8)[8] for p in pieces]
    mean = sum(part.mean * part.tokens for part in parts) / sum(part.tokens for part in parts)
    assert whole.mean == pytest.approx(mean, abs=1e-5)


def test_copies_are_the_runs_that_a_direct_search_finds():
    ids = np.random.default_rng(1).integers(0, 4, 120).tolist()
    for window, run in ((0, 3), (20, 3), (20, 4)):
        expected = np.zeros(len(ids), bool)
        for at in range(len(ids) - run + 1):
            earlier = [j for j in range(at - window) if ids[j : j + run] == ids[at : at + run]]
            expected[at : at + run] |= bool(earlier)
        assert copies(ids, window, run).tolist() == expected.tolist()


def test_copied_tokens_have_no_gain_and_are_no_key_tokens():
    short, full = np.float32([5, 5, 1, 4]), np.float32([1, 1, 1, 3])
    gain = summarise([(short, full, np.array([False, True, False, False]))])
    assert (gain.mean, gain.key, gain.copied) == ((4 + 1) / 4, 1 / 4, 1 / 4)
    assert gain.relative == 5 / 4 / (15 / 4)


def test_an_answer_is_scored_with_the_last_tokens_and_with_all(scorer):
    ids = random_ids(50)
    short, full = answer_nll(scorer, ids, (40, 43), 10)
    context = [ids[0], *ids[30:40]]
    assert full == pytest.approx(
        np.mean([direct(scorer, ids[:at], ids[at]) for at in range(40, 43)]), abs=5e-5
    )
    nll = [direct(scorer, [*context, *ids[40:at]], ids[at]) for at in range(40, 43)]
    assert short == pytest.approx(np.mean(nll), abs=5e-5)
    assert answer_nll(scorer, ids, (40, 43), 45)[0] == answer_nll(scorer, ids, (40, 43), 45)[1]


def test_real_long_text_beats_shuffled_sentences_beat_concatenated_shorts():
    rng = random.Random(0)

    def gain(words):
        ids = [IDS[word] for word in words]
        return measure(Reader(), ids, [24], context=512, run=8)[24].mean

    real = exam_row(rng, 400, count=16).words
    scores = [gain(words) for words in (real, shuffled(rng, real), joined_shorts(rng))]
    assert scores[0] > scores[1] > scores[2] == 0
