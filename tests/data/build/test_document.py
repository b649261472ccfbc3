"""A document comes back from its line as it was."""

from __future__ import annotations

from regraft.data.build.document import Document, Message


def test_a_line_gives_the_document_back():
    talk = (Message("user", "who?\n"), Message("assistant", "\u2028 me 𝔘"))
    full = Document("a\nb\u2028c\x85", "x:1", "s", {"q": 0.1}, {"k": "v"}, messages=talk, tokens=7)
    for document in (full, Document("", "0", "s")):
        line = document.to_line()
        assert line.count("\n") == 1
        assert Document.from_line(line.encode()) == document


def test_another_text_has_no_known_tokens():
    document = Document("a b", "1", "s", {"q": 1.0}, tokens=3)
    assert document.with_text("a", id="1#1") == Document("a", "1#1", "s", {"q": 1.0})
