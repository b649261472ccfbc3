"""The search for factors of longrope: a model without training, scored on needles."""

from __future__ import annotations

import pytest

from regraft.rope.longrope import long_factors, search_factors
from regraft.train import factor_search
from regraft.train.recipe.recipe import Recipe

RECIPE = """
model: {{toy: {{length: 64, hidden: 32, intermediate: 48}}}}
rope: {{family: longrope}}
stages: [{{length: 256, theta: 70, steps: 1}}]
data:
  cache: {cache}
  held_out: 0.2
  sources: [{{name: long, synthetic: notes, words: 256, documents: 10}}]
watch: {{rows: 2, needle: {{fact: "note oslo {{value}} ;", question: "ask oslo",
  answer: "{{value}}", values: [otter, maple], rows: 2}}}}
"""


def test_the_best_factors_have_the_lowest_needle_nll(tmp_path, monkeypatch):
    scores: dict[tuple[float, ...], float] = {}

    def search(score, *shape, **settings):
        def noted(factors):
            return scores.setdefault(tuple(factors), score(factors))

        return search_factors(noted, *shape, **settings)

    monkeypatch.setattr(factor_search, "search_factors", search)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(cache=tmp_path / "cache"))
    factors = factor_search.best_factors(Recipe.read(path), 64, budget=6, device="cpu")
    assert len(scores) == 6
    assert tuple(long_factors(4, 70.0, 64, 256)) in scores
    assert len(set(scores.values())) == 6  # the factors are really used
    assert factors == pytest.approx(min(scores, key=scores.__getitem__), abs=1e-4)
