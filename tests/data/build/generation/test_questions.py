"""Questions follow a document's text, and useless ones are found out."""

from __future__ import annotations

import pytest

from regraft.data.build.document import Document, Message
from regraft.data.build.generation.questions import (
    Query,
    ask_at_end,
    copied_share,
    problem_of_query,
    read_query,
)

PIECES = ["Anna has a red boat.", "Bert has a blue boat.", "Cora is in Lima."]


@pytest.mark.parametrize(
    ("question", "answer", "at", "problem"),
    [
        ("Where is Cora?", "Lima", 2, None),
        ("Where is Cora?", "Oslo", 2, "not in its piece"),
        ("What has Bert?", "boat", 1, "in several pieces"),
        ("What does the passage say of Cora?", "Lima", 2, "about 'the passage'"),
        ("Who has a blue boat?", "blue boat", 1, "in its question"),
    ],
)
def test_useless_questions_are_found_out(question, answer, at, problem):
    found = problem_of_query(Query(question, answer), PIECES, at)
    assert found is None if problem is None else problem in found


def test_a_reply_is_read_in_two_lines_only():
    assert read_query("Question: Who?\nAnswer: Anna Bell") == Query("Who?", "Anna Bell")
    assert read_query("Who? Anna") is None


def test_the_share_of_copied_words_is_that_of_runs():
    old = " ".join(map(str, range(30)))
    assert copied_share(old, old) == 1
    assert copied_share(old, "a b c d e f g h i j") == 0
    assert copied_share(old, "a b " + " ".join(map(str, range(5, 13)))) == 8 / 10
    assert copied_share(old, " ".join(map(str, range(7)))) == 0  # no run of 8
    assert copied_share("a b", "a b") == 1


def test_questions_are_text_or_turns():
    queries = [Query("Who?", "Anna"), Query("Where?", "Lima")]
    text = ask_at_end(Document("old", "0", "a"), "T", queries, "text")
    assert text.text == "T\n\nWho?\nAnna\n\nWhere?\nLima"
    assert text.metadata == {"question": "Where?", "answer": "Lima"}
    chat = ask_at_end(Document("old", "0", "a"), "T", queries, "messages")
    assert chat.messages == (
        Message("user", "T\n\nWho?"), Message("assistant", "Anna"),
        Message("user", "Where?"), Message("assistant", "Lima"),
    )  # fmt: skip
