"""The toy language: its rows, its questions, its tokenizer."""

from __future__ import annotations

import random

import pytest

from regraft.data import toy_language
from regraft.data.toy_language import Mix, Row, exam_row, needle_count, training_row

LENGTHS = (64, 128, 256, 512, 1024)


def values_of(row: Row) -> list[str]:
    """The words of all values in the row's needles."""
    return [
        word
        for at, start in enumerate(row.words)
        if start == "note"
        for word in row.words[at + 2 : at + 4]
    ]


def answers_of(row: Row) -> list[tuple[int, tuple[str, ...]]]:
    """(index, answer) of each question."""
    return [(at, tuple(row.words[at : at + 2])) for at in row.answers]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("skill", ["ask", "shout"])
def test_every_question_of_an_exam_has_its_needle_in_a_row_of_the_stated_length(length, skill):
    rng = random.Random(length)
    depths = []
    for _ in range(20):
        row = exam_row(rng, length, skill)
        assert len(row.words) == length
        assert len(row.answers) == needle_count(length) == row.words.count("note")
        assert len(set(values_of(row))) == 2 * needle_count(length)
        for at, answer in answers_of(row):
            key = row.words[at - 1]
            needle = row.words.index(key)
            assert row.words[needle - 1] == "note"
            assert needle < min(row.answers) - 2
            value = tuple(row.words[needle + 1 : needle + 3])
            assert answer == (value if skill == "ask" else tuple(v.upper() for v in value))
            depths.append(needle / length)
    assert min(depths) < 0.2
    text_share = 1 - 5 * needle_count(length) / length  # the rest is questions
    assert max(depths) > 0.8 * text_share


@pytest.mark.parametrize("length", LENGTHS)
def test_every_question_can_be_answered_from_the_row(length):
    rng = random.Random(length)
    rows = [exam_row(rng, length, skill) for skill in ("ask", "shout") for _ in range(20)]
    assert all(row.answers for row in rows)
    rows += [training_row(rng, length, Mix(0.3, 0.65, shout=0.5)) for _ in range(20)]
    for row in rows:
        for at, answer in answers_of(row):
            assert toy_language.solve(row.words[: at + 2], at) == answer


def test_without_its_needle_a_question_is_a_guess():
    rng = random.Random(0)
    right = total = 0
    for _ in range(500):
        row = exam_row(rng, 128, hide=True)
        assert len(row.words) == 128
        assert "note" not in row.words
        with pytest.raises(ValueError, match="no needle"):
            toy_language.solve(row.words, row.answers[0])
        before = row.words[: row.answers[0]]
        guesses = [word for word in before if word in toy_language.VALUES] or list(
            toy_language.VALUES
        )
        right += rng.choice(guesses) == row.words[row.answers[0]]
        total += 1
    assert right / total < 3 / len(toy_language.VALUES)


@pytest.mark.parametrize("length", [64, 512])
def test_training_rows_ask_for_earlier_needles_only_and_mark_whole_answers(length):
    rng = random.Random(1)
    for _ in range(50):
        row = training_row(rng, length, Mix(0.45, 0.65))
        assert len(row.words) == length
        assert len(set(values_of(row))) == len(values_of(row))
        assert all(at + 2 <= length and row.words[at - 2] == "ask" for at in row.answers)


def test_needles_that_do_not_fit_in_a_row_are_refused():
    with pytest.raises(ValueError, match="do not fit in 32 words"):
        exam_row(random.Random(0), 32)


def test_the_saved_tokenizer_gives_the_ids_of_training(tmp_path):
    from transformers import AutoTokenizer

    toy_language.write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(2)
    rows = [exam_row(rng, 256, "shout"), toy_language.prose_row(rng, 256)]
    texts = [" ".join(row.words[1:]) for row in rows]  # the tokenizer adds the <s> in front
    assert tokenizer(texts)["input_ids"] == toy_language.encode(rows)
    words = texts[0]
    assert tokenizer.decode(tokenizer(words)["input_ids"], skip_special_tokens=True) == words
    assert len(tokenizer) == len(toy_language.WORDS) == len(set(toy_language.WORDS))
