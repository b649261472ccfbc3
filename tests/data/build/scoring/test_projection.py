"""Texts of one kind are near each other, as vectors and in the plane."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from regraft.data.build.scoring import projection
from regraft.data.build.scoring.projection import hashed_vectors, to_plane

WORDS = (
    ["harbour", "anchor", "sailor", "tide", "mast", "rudder", "keel", "vessel", "crew", "storm"],
    ["\u6d77\u6e2f", "\u8239\u5458", "\u98ce\u66b4", "\u7f57\u76d8", "\u8f6e\u8239"],
    ["oven", "flour", "butter", "sugar", "yeast", "dough", "recipe", "kitchen", "pastry", "bread"],
)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS[i % 3], k=60)) for i in range(45)]


def _is_near_its_own(points) -> bool:
    distances = ((points[:, None] - points[None]) ** 2).sum(-1)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(1)
    return bool((nearest % 3 == np.arange(len(points)) % 3).all())


def test_texts_of_one_kind_are_near_each_other(texts) -> None:
    vectors = hashed_vectors(texts)
    assert vectors.shape == (45, 128)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert _is_near_its_own(vectors)
    points, method = to_plane(vectors)
    assert (points.shape, method) == ((45, 2), "principal components")
    assert _is_near_its_own(points)
    assert (to_plane(hashed_vectors(texts))[0] == points).all()


def test_texts_too_short_or_equal_have_a_place() -> None:
    vectors = hashed_vectors(["", "abcd", "same text", "same text"])
    assert (vectors[:2] == 0).all()
    assert (vectors[2] == vectors[3]).all()
    assert to_plane(vectors[2:])[0].tolist() == [[0, 0], [0, 0]]


def test_many_equal_texts_are_not_given_to_t_sne(monkeypatch) -> None:
    class Method:
        def __init__(self, **_) -> None:
            raise AssertionError("t-SNE computes NaN where all points are equal")

    monkeypatch.setattr(projection, "_FEWEST", 4)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", SimpleNamespace(TSNE=Method))
    points, method = to_plane(np.ones((6, 8), np.float32))
    assert (points.tolist(), method) == ([[0, 0]] * 6, "principal components")


def test_many_texts_are_placed_by_t_sne(texts, monkeypatch) -> None:
    class Method:
        def __init__(self, **settings) -> None:
            assert settings["random_state"] == 0

        def fit_transform(self, components):
            assert components.shape == (45, 45)
            return components[:, :2].astype(np.float64)

    monkeypatch.setattr(projection, "_FEWEST", 45)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", SimpleNamespace(TSNE=Method))
    points, method = to_plane(hashed_vectors(texts))
    assert (points.dtype, method) == (np.float32, "t-SNE")
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert to_plane(hashed_vectors(texts))[1] == "principal components"
