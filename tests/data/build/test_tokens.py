"""Tokens of documents are counted as training counts them."""

from __future__ import annotations

from pathlib import Path

from built import documents

from regraft.checkpoint.hf.tokenizer import open_tokenizer
from regraft.data.build.document import Document
from regraft.data.build.tokens import ByteCounter, count_tokens, open_counter
from regraft.data.sources import Text
from regraft.data.tokens import tokenise
from regraft.data.toy_language import write_tokenizer


def test_counts_are_those_of_training(tmp_path: Path):
    write_tokenizer(tmp_path / "model")
    texts = ["the river paints the lantern .", "a", "the barrel"]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    counter = open_counter(str(tmp_path / "model"))
    counted = [document.tokens for document in count_tokens(documents(*texts), counter)]
    source = Text("text", str(tmp_path / "text.txt"), separator="\n\n")
    tokenizer = open_tokenizer(str(tmp_path / "model"))
    tokens = tokenise(source, tokenizer, tmp_path / "cache", 2**20)
    assert counted == tokens.lengths().tolist()
    assert counter.special == 2  # begin and end of text
    assert counter.ends(texts[0]).tolist() == [3, 9, 16, 20, 28, 30]


def test_bytes_end_at_characters():
    text = "aé\u4e00𝔘"
    counter = ByteCounter()
    assert counter.lengths([text, "ab"]) == [10, 2]
    ends = counter.ends(text).tolist()
    assert ends == [1, 2, 2, 3, 3, 3, 4, 4, 4, 4]


def test_known_counts_are_not_repeated():
    given = [Document("abc", "0", "s", tokens=99), Document("abc", "1", "s")]
    assert [one.tokens for one in count_tokens(given, ByteCounter())] == [99, 3]
