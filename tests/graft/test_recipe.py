"""Graft recipes: the mistakes of all blocks at once, names and points."""

from __future__ import annotations

import pytest

from regraft.document import Document
from regraft.errors import InputError
from regraft.graft.recipe import Recipe

BASE = "base: org/base\nextended: org/long\n"


def read(text: str) -> Recipe:
    return Recipe(Document("r.yaml", text))


def test_mistakes_of_every_block_are_named_at_once_with_their_lines() -> None:
    text = (
        "base: {train: {model: {toy: {}}, stages: [{length: 64, steps: 1, rat: 2}], data: "
        "{sources: [{name: a, synthetic: notes}]}}}\n"
        "extend: {stages: [{length: 1k, steps: 1}], data: {sources: [{name: a, synthetic: notes, "
        "wrods: 3}]}}\n"
        "targets: [{name: a, train: {stages: 3, data: {sources: [{name: a, text: t}]}}}]\n"
        "merge: {merge_method: tie, models: [{model: target}]}\n"
        "recover: {stages: [{length: 64, steps: 1, rate: -1}], data: {sources: []}}\n"
        "rankss: 3\n"
    )
    with pytest.raises(InputError) as caught:
        read(text)
    message = str(caught.value)
    for words in (
        "line 1: 'rat' is not a key here (did you mean rate?)",
        "line 2: 'wrods' is not a key here (did you mean words?)",
        "line 3: stages should be a valid list, not 3",
        "line 4: 'tie' is not a merge method (did you mean ties?)",
        "line 5: stages.0.rate should be greater than 0",
        "line 6: 'rankss' is not a key here (did you mean ranks?)",
    ):
        assert words in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: b\ntargets: a\n", "give one of extended, adapter and extend"),
        ("extended: e\ntargets: a\n", "'base' is missing"),
        (BASE + "adapter: c\ntargets: a\n", "line 3: give one of extended, adapter and extend"),
        (BASE + "targets: [x/a, y/a]\n", "line 3: two targets are called a; give a name"),
        (BASE + "targets: []\n", "give at least one target"),
        (BASE + "targets: a\nranks: [8, 16]\n", "line 4: several ranks or scales are compared by"),
        (BASE + "targets: a\nscales: [0]\n", "line 4: a scale of 0 grafts nothing"),
        (BASE + "targets: a\nranks: [0]\n", "line 4: ranks.0 should be greater than or equal to 1"),
        (BASE + "targets: a\nranks: [600]\n", "line 4: rank 600 is more than the 512"),
        (BASE + "targets: a\nranks: [8]\nextract: {energy: 0.9}\n", "both decide the ranks"),
        (BASE + "targets: a\nranks: [600]\n", "give layout compact or a smaller rank"),
        (BASE + "targets: a\nmethod: merge\n", "line 4: method: merge needs a merge block"),
        (BASE + "targets: a\nmerge: {merge_method: ties}\n", "line 4: method is apply"),
        (BASE + "targets: a\nevaluate: {suite: needl}\n", "line 4: suite 'needl' is unknown"),
        (BASE + "targets: a\nevaluate: {itens: 3}\n", "'itens' is not a key here (did you mean"),
        (BASE + "targets: a\nrecover: absent.yaml\n", "line 4: The recipe absent.yaml cannot be"),
        (BASE + "targets: {name: x}\n", "give either model or train"),
        (
            "adapter: c\nranks: [8]\ntargets: a\nevaluate: {}\n",
            "line 2: adapter has its rank already; leave ranks out",
        ),
        ("adapter: c\ntargets: a\napply: {guard: true}\n", "line 3: a guard is the recipe's base"),
        (
            BASE + "targets: a\nranks: [4, 8]\nevaluate: {}\napply: {guard: true}\n",
            "line 6: a sweep measures the change without a guard",
        ),
        (
            BASE + "targets: a\nmethod: merge\nmerge: {}\napply: {guard: true}\n",
            "line 6: method is merge, which has no apply",
        ),
        ("adapter: c\ntargets: a\nevaluate: {}\n", "line 3: grafts are compared with the donor"),
    ],
)
def test_contradictions_are_named(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read(text)
    assert words in str(caught.value)


def test_targets_are_named_by_the_last_part_of_their_model() -> None:
    recipe = read(BASE + "targets: [org/one@main, ./two, {name: three, model: org/x}]\n")
    assert [target.name for target in recipe.targets] == ["one", "two", "three"]
    assert [target.model for target in recipe.targets] == ["org/one@main", "./two", "org/x"]


def test_ranks_and_scales_have_defaults_and_no_repetitions() -> None:
    assert read(BASE + "targets: a\n").ranks == [64]
    assert read(BASE + "targets: a\nextract: {energy: 0.9}\n").ranks == [None]
    recipe = read(
        BASE + "targets: a\nranks: [8, auto, 8]\nscales: [1, 1.0, 0.5]\nevaluate: {suite: needle}\n"
    )
    assert (recipe.ranks, recipe.scales) == ([8, "auto"], [1.0, 0.5])


def test_a_merge_block_without_models_merges_target_and_adapter() -> None:
    recipe = read(
        BASE + "targets: a\nmethod: merge\nmerge: {merge_method: ties, parameters: "
        "{weight: 1.0, density: 0.5}}\n"
    )
    merge = recipe.merge_block().value
    assert merge["base_model"] == "base"
    assert [item["model"] for item in merge["models"]] == ["target", "adapter"]
    assert merge["context"] == "adapter"
