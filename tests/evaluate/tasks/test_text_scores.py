"""The scores of published suites for free answers."""

from __future__ import annotations

import pytest

from regraft.evaluate.tasks import score_text
from regraft.evaluate.tasks import text_scores as metrics


def test_metrics_are_those_of_the_papers() -> None:
    score = score_text
    assert score("The Eiffel-Tower!", ["eiffeltower"], "f1") == 1
    assert score("a red house on fire", ["no", "The red house"], "f1") == pytest.approx(4 / 6)
    assert score("Café", ["cafe"], "f1") == 1
    assert score("", ["x"], "f1") == 0
    assert score("Answer: C, not A", ["C"], "letter") == 1
    assert score("Apparently C", ["A"], "letter") == 0
    assert score("so 40% of 60%", ["50%"], "percentage") == pytest.approx(0.5)
    assert score("forty", ["50%"], "percentage") == 0
    assert score("Order: 2, 1, 3", ["1, 2, 3"], "order") == pytest.approx(2 / 3)
    assert score("3, 2, 1", ["1, 2, 3"], "order") == 0
    assert score("1, 2", ["1, 2, 3"], "order") == 0
    masks = str({"<mask-0>": "Tank", "<mask-1>": "Andy"})
    assert score("{'<mask-0>': 'Tank', '<mask-1>': 'andy'}", [masks], "cloze") == 0.5
    assert score("{'<mask-0>': open('x')}", [masks], "cloze") == 0
    for deep in ("{" + "-" * 100_000 + "1}", "{1" + "+1" * 100_000 + "}", "{[]: 1}"):
        assert score(deep, [masks], "cloze") == 0
    assert score("1912.\nOr so", ["1912"], "same") == 1
    assert score("In 1912", ["1912"], "same") == 0
    assert score("No.", ["no"], "verdict") == score("Yes, it is", ["yes"], "verdict") == 1
    assert score("Perhaps", ["yes"], "verdict") == score("yes", ["no"], "verdict") == 0


def test_precision_and_recall_are_those_of_the_answer_yes() -> None:
    said = ["Yes.", "yes", "no", "No", "perhaps", "yes"]
    expected = ["yes", "no", "no", "yes", "yes", "yes"]
    scores = [
        score_text(text, [right], "verdict") for text, right in zip(said, expected, strict=True)
    ]
    result = metrics.detection(said, scores)
    assert result.precision == pytest.approx(2 / 3, abs=1e-6)
    assert result.recall == pytest.approx(2 / 4)
    assert result.f1 == pytest.approx(4 / 7, abs=1e-6)
    assert metrics.detection(["no"], [0.0]) == metrics.Detection(0, 0, 0)


def test_rouge_is_the_geometric_mean_of_the_best_of_each_kind() -> None:
    pytest.importorskip("rouge_score", reason="the eval extra is not installed")
    said, references = "the cat sat", ["the cat sat down", "a dog sat"]
    one, two, longest = 6 / 7, 4 / 5, 6 / 7
    assert score_text(said, references, "rouge") == pytest.approx((one * two * longest) ** (1 / 3))
    assert score_text(said, references, "rouge_l") == pytest.approx(3 / 4)
    assert score_text("", references, "rouge") == score_text("", references, "rouge_l") == 0
