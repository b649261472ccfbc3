"""Documents are cut at natural boundaries, upsampled at fixed totals and joined to a length."""

from __future__ import annotations

import random

import pytest
from built import documents, run_step
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from regraft.data.build.document import Document, Message
from regraft.data.build.recipe import Recipe
from regraft.data.build.steps.copies import Copies
from regraft.data.build.steps.cutting import Cutter, boundary
from regraft.data.build.steps.length import Length
from regraft.data.build.tokens import ByteCounter, open_counter
from regraft.data.toy_language import write_tokenizer
from regraft.errors import InputError


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("aaaa bbbb. cccc\n\ndd ee", 20, "aaaa bbbb. cccc\n\n"),
        ("aaaa bbbb cc\ncc dd ee ff", 16, "aaaa bbbb cc\n"),
        ("aaaa bbbb cccc. dd ee ff", 18, "aaaa bbbb cccc. "),
        ("aaaa bbbb cccc dd ee ff", 17, "aaaa bbbb cccc dd"),
        ("aa bbbbbbbbbbbbbbbbbbbbbbbb", 17, "aa"),
        ("\u4e2d\u6587\u3002\u4e2d\u6587\u3002\u4e2d", 6, "\u4e2d\u6587\u3002\u4e2d\u6587\u3002"),
        ("aaaaaaaaaaaaaaaaaaaa", 17, "a" * 17),
        ("aaaae\u0301aaaa", 5, "aaaa"),  # not between a letter and its accent
    ],
)
def test_a_cut_is_at_the_best_boundary_near_the_end(text, limit, expected):
    assert text[: boundary(text, 0, limit)] == expected


@settings(max_examples=50)
@given(st.text(alphabet="ab .\n\u4e2d\u0301\U0001f468\u200d", min_size=1, max_size=200),
       st.integers(5, 40))  # fmt: skip
def test_pieces_are_the_text_without_the_space_around_cuts(text, limit):
    pieces = list(Cutter(ByteCounter()).pieces(text, limit))
    assert "".join("".join(piece for piece, _ in pieces).split()) == "".join(text.split())
    for piece, tokens in pieces:
        assert tokens == len(piece.encode())
        assert tokens <= limit or len(piece) == 1
        assert piece


def test_no_word_is_cut_and_every_piece_fits_by_a_tokenizer(tmp_path):
    write_tokenizer(tmp_path)
    counter = open_counter(str(tmp_path))
    rng = random.Random(0)
    words = [rng.choice(["river", "the", "lantern", "note."]) for _ in range(400)]
    passed, statistics = run_step(Length(maximum=64), documents(" ".join(words)), counter=counter)
    assert " ".join(one.text for one in passed).split() == words
    assert [one.tokens for one in passed] == counter.lengths([one.text for one in passed])
    assert all(48 <= (one.tokens or 0) <= 64 for one in passed[:-1])
    assert [one.id for one in passed][:2] == ["0#1", "0#2"]
    assert statistics.counts["cut documents"] == 1


def test_short_documents_are_dropped():
    passed, statistics = run_step(Length(minimum=5), documents("abcd", "abcde"))
    assert [one.text for one in passed] == ["abcde"]
    assert statistics.dropped == {"too short": 1}


def test_upsampling_keeps_the_tokens_of_a_source_and_gives_long_ones_their_share():
    rng = random.Random(1)
    texts = ["x" * rng.randint(20, 60) for _ in range(700)]
    texts += ["x" * rng.randint(400, 900) for _ in range(25)]
    rng.shuffle(texts)
    total = sum(map(len, texts))
    passed, statistics = run_step(Length(buckets=[100], shares=[0.3, 0.7]), documents(*texts))
    long = sum(len(one.text) for one in passed if len(one.text) >= 100)
    after = sum(len(one.text) for one in passed)
    assert abs(after - total) <= 900  # half a document of each class
    assert abs(long - 0.7 * total) <= 450
    assert len({one.id for one in passed}) == len(passed)
    assert statistics.dropped["left out, below 100"] > 0
    place = {one.id: i for i, one in enumerate(passed)}
    copied = [one.id for one in passed if f"{one.id}#2" in place]
    assert copied
    assert all(place[f"{name}#2"] - place[name] > 20 for name in copied)  # far apart


@settings(max_examples=30)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=50), st.floats(0.05, 4))
def test_copies_are_as_many_as_their_share_allows(sizes, factor):
    copies = Copies(factor)
    taken = 0
    for i, size in enumerate(sizes):
        number = copies.next(size)
        taken += number * size
        assert 0 <= number <= -(-factor // 1)
        assert taken <= factor * sum(sizes[: i + 1]) + max(sizes) / 2 + 1e-6
    one = Copies(0.6)
    assert one.next(1000) == 1


def test_joined_texts_have_the_length_and_the_separator():
    texts = [f"paragraph {i} " + "word " * (5 + i % 7) + "end." for i in range(60)]
    passed, _ = run_step(Length(join=256, separator="\n\n"), documents(*texts))
    assert all(192 <= (one.tokens or 0) <= 256 for one in passed)
    joined = "\n\n".join(one.text for one in passed)
    assert joined.split() == "\n\n".join(texts).split()[: len(joined.split())]
    assert all(one.text.count("\n\n") >= 2 for one in passed)
    assert len({one.id for one in passed}) == len(passed) > 8


class _Counting(ByteCounter):
    """Adds up the characters that it counts tokens of."""

    read = 0

    def lengths(self, texts):
        self.read += sum(map(len, texts))
        return super().lengths(texts)


def test_joining_a_long_text_does_not_read_its_rest_for_every_piece():
    text = "word " * 20_000
    counter = _Counting()
    passed, _ = run_step(Length(join=1000), documents(text), counter=counter)
    assert len(passed) == 100
    assert [one.tokens for one in passed[:-1]] == [999] * 99
    assert counter.read < 8 * len(text)


def test_joined_texts_do_not_mix_sources():
    given_documents = [*documents("a " * 60, source="a"), *documents("b " * 60, source="b")]
    passed, statistics = run_step(Length(join=80), given_documents)
    assert {one.source for one in passed} == {"a", "b"}
    assert all(set(one.text.split()) == {one.source} for one in passed)
    assert statistics.counts["tokens of unfinished texts"] > 0


def test_conversations_are_not_cut():
    talk = Document("x " * 100, "0", "c", messages=(Message("user", "x " * 100),))
    with pytest.raises(InputError, match="'c' has conversations; use the step chat"):
        run_step(Length(maximum=50), [talk])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"buckets": [10], "shares": [1.0]}, "1 buckets need 2 shares"),
        ({"buckets": [10], "shares": [0.5, 0.6]}, "add up to 1.1"),
        ({"buckets": [20, 10]}, "must rise"),
        ({"minimum": 20, "maximum": 10}, "minimum is above maximum"),
    ],
)
def test_contradictions_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        Length(**keys)


def test_only_upsampling_and_joining_need_the_whole_source():
    assert Length(minimum=1, maximum=9).independent
    assert not Length(join=9).independent
    assert not Length(buckets=[9], shares=[0.5, 0.5]).independent


@pytest.mark.parametrize(
    ("own", "common", "line"),
    [
        ("length: {join: 4k}", "dedup: {near: false}", 7),
        ("chat", "length: {join: 4k}", 9),
        ("chat", "mix: {weights: {b: 1}}\n  - length: {join: 4k}", None),
    ],
    ids=["of the source", "of all", "after a mix"],
)
def test_joining_conversations_is_refused_by_the_recipe(tmp_path, own, common, line):
    source = "licence: CC0-1.0\n    jsonl: a.jsonl\n"
    (tmp_path / "recipe.yaml").write_text(
        f"sources:\n  - name: a\n    {source}    chat: true\n    steps:\n      - {own}\n"
        f"steps:\n  - {common}\noutput: {{tokenizer: bytes}}\n"
    )
    if line is None:
        Recipe.read(tmp_path / "recipe.yaml")
        return
    with pytest.raises(InputError, match=rf"line {line}: 'a' has conversations, which `join`"):
        Recipe.read(tmp_path / "recipe.yaml")
