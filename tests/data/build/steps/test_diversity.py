"""`diversity` keeps the band around the base corpus, and then the documents that cover it."""

from __future__ import annotations

import numpy as np
import pytest
from built import documents, run_step
from pydantic import ValidationError

from regraft.data.build.scoring.embedding import normalise
from regraft.data.build.steps import diversity
from regraft.data.build.steps.diversity import Diversity
from regraft.errors import InputError


class Circle:
    """A text is an angle in degrees."""

    def embed(self, texts):
        angles = np.radians([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


@pytest.fixture
def step(tmp_path, monkeypatch):
    monkeypatch.setattr(diversity, "open_embedder", lambda *_: Circle())
    base = tmp_path / "base"
    base.mkdir()
    for angle in (0, 180):  # their mean is 0
        (base / f"{angle}.txt").write_text(str(angle))
    return lambda **keys: Diversity.model_validate({"model": "m", "base": str(base), **keys})


def angles(result):
    return [float(one.text) for one in result]


def test_documents_outside_the_band_are_dropped(step):
    items = documents("1", "20", "50", "90", "170", "200")
    result, statistics = run_step(step(least=0.5, most=0.97), items)
    assert angles(result) == [20, 50, 200]
    assert statistics.dropped == {"similarity above 0.97": 2, "similarity below 0.5": 1}
    similarity = [one.scores["diversity.similarity"] for one in result]
    assert similarity == pytest.approx(np.cos(np.radians([20, 50, 20])), abs=1e-5)


def test_a_budget_keeps_the_farthest_from_base_and_from_each_other(step):
    items = documents("88", "90", "92", "45", "270", "10")
    result, statistics = run_step(step(tokens=5), items)  # a byte is a token
    assert angles(result) == [90, 270]
    assert statistics.dropped == {"over the budget of tokens": 4}
    assert [one.scores["diversity.distance"] for one in result] == pytest.approx([1, 1], abs=1e-5)
    result, _ = run_step(step(tokens=100), items)
    assert angles(result) == angles(items)


def test_the_base_corpus_is_sampled(step, tmp_path):
    (tmp_path / "base" / "90.txt").write_text("90")
    result, _ = run_step(step(sample=2, tokens=100), documents("90"))
    assert len(result) == 1


def test_bad_settings_are_refused(step, tmp_path):
    with pytest.raises(ValidationError, match="least below most"):
        step(least=0.5, most=0.2)
    (tmp_path / "base" / "0.txt").unlink()
    with pytest.raises(InputError, match="has 1 document, and a sample needs two"):
        run_step(step(), documents("1"))


def test_vectors_of_length_0_stay():
    assert normalise(np.zeros((1, 2), np.float32)).tolist() == [[0, 0]]
