"""Sentences are the text, in one piece each."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.data.boundaries import sentence_ends, split


@settings(max_examples=40)
@given(st.text(alphabet="ab .!?\n\u201d", max_size=60), st.integers(0, 1000))
def test_sentences_are_the_text(text: str, run: int) -> None:
    text += "x" * run
    sentences = split(text)
    assert "".join(sentences) == text
    assert all(sentences)
    ends = sentence_ends(text).tolist()
    assert ends == [sum(map(len, sentences[: i + 1])) for i in range(len(sentences))]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two?\n\nThe 3.5 more\nFour", ["One. ", "Two?\n\n", "The 3.5 more\n", "Four"]),
        ('He said "go." She went. (All', ['He said "go." ', "She went. ", "(All"]),
        ("(all!) \u201cWhy?\u201d\n'No.'  A", ["(all!) ", "\u201cWhy?\u201d\n", "'No.'  ", "A"]),
        ("\"Go!\" she said.  'A?'  he", ['"Go!" she said.  ', "'A?'  he"]),
        ("word " * 100 + "end. Next", ["word " * 80, "word " * 20 + "end. ", "Next"]),
        ("x" * 900, ["x" * 400, "x" * 400, "x" * 100]),
        ("", []),
    ],
    ids=["ends", "quotation", "closing marks", "speech", "long", "without spaces", "empty"],
)
def test_a_text_is_split_after_sentences_and_within_long_ones(text, sentences) -> None:
    assert split(text) == sentences
