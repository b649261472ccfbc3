"""Texts that are tokenized by sentences have the tokens of the whole text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from evaluated import text_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors

from regraft.checkpoint.hf.pre_tokenizer import LLAMA3
from regraft.evaluate.prompts import pieces
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.prompts.pieces import PieceEncoder

SENTENCES = (
    "The mill was old. The inn (new) was \u201cfar\u201d: Ada's mule saw it!\nIt rained.\n\nWhy?"
)
FRAGMENTS = (
    " ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u2028", "\u200d",
    ".", ". ", "! ", "? ", ": ", "; ", ', "', '" ', "' ", "'s", "'S ", ") ", "\u201d ", "-", "...",
    "The", "was", "a", "mill", "\u00e9", "e\u0301", "\u4e2d", "\u0130", "\U0001f600",
    "7", "12345", ".\n", "x\n", "5\n", "<s>", "</s>",
)  # fmt: skip


def bytes_after(*before: Any, **settings: Any) -> Any:
    return pre_tokenizers.Sequence(
        [*before, pre_tokenizers.ByteLevel(add_prefix_space=False, **settings)]
    )


def gpt2() -> Any:
    return text_tokenizer()


def smollm() -> Any:
    """Without special tokens around a text."""
    tokenizer = text_tokenizer()
    core = tokenizer.backend_tokenizer
    core.pre_tokenizer = bytes_after(pre_tokenizers.Digits(individual_digits=True))
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def llama3() -> Any:
    """With special tokens before and after a text, and offsets without spaces."""
    tokenizer = text_tokenizer()
    core = tokenizer.backend_tokenizer
    expression = Regex(LLAMA3[0].removeprefix("split "))
    core.pre_tokenizer = bytes_after(pre_tokenizers.Split(expression, "isolated"), use_regex=False)
    ends = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), ends])
    return tokenizer


CUTTING = [gpt2, smollm, llama3]


@pytest.fixture(scope="module", params=CUTTING, ids=lambda make: make.__name__)
def prompter(request: pytest.FixtureRequest) -> Prompter:
    return Prompter(request.param())


def whole(tokenizer: Any, text: str, low: int, high: int) -> tuple[list[int], list[int]]:
    """Token ids, and the places of those that share a character with text[low:high]."""
    special = not text.startswith("<s>")
    encoding = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    places = [
        at
        for at, (start, end) in enumerate(encoding["offset_mapping"])
        if start < high and end > low and end > start
    ]
    return list(encoding["input_ids"]), places


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.sampled_from(FRAGMENTS), min_size=12, max_size=40).map("".join),
    st.lists(st.sampled_from(FRAGMENTS), max_size=5).map("".join),
)
def test_pieces_have_the_tokens_and_places_of_the_whole_text(
    prompter: Prompter, prompt: str, answer: str
) -> None:
    text, first = prompt + answer, len(prompt)
    ids, places = whole(prompter.tokenizer, text, first, len(text))
    assert prompter.ids(text) == ids
    encoded = prompter.encode(prompt, answer, [(0, len(answer))])
    assert (encoded.ids, encoded.positions) == (ids, [places])


def test_a_sentence_is_tokenized_once(prompter: Prompter, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PieceEncoder(prompter.tokenizer)
    read: list[str] = []
    encode = PieceEncoder._encode

    def spy(self: PieceEncoder, text: str | list[str], special: bool, **more: Any) -> Any:
        read.extend([text] if isinstance(text, str) else text)
        return encode(self, text, special, **more)

    monkeypatch.setattr(PieceEncoder, "_encode", spy)
    encoder.ids(SENTENCES, False)
    assert "".join(read) == SENTENCES
    assert len(read) == 5
    read.clear()
    longer = SENTENCES.replace("It rained", "A needle. It rained")
    encoder.ids(longer, False)
    assert read == ["A needle.", " It rained.\n\nWhy?"]
    read.clear()
    encoder.ids_and_offsets(longer + " He", 3, False)
    assert read == [" It rained.\n\nWhy? He"]  # with the places of its characters


def test_the_cache_is_bounded(prompter: Prompter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_CACHED", 8)
    encoder = PieceEncoder(prompter.tokenizer)
    texts = [f"The {word} was old. The end." for word in ("mill", "inn", "barn", "mill")]
    for text in texts:
        assert (
            encoder.ids(text, False)
            == prompter.tokenizer(text, add_special_tokens=False)["input_ids"]
        )
    assert not any("inn" in piece for piece in encoder._ids)


def prefix_space(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def normalized(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(". The", "!")


def token_with_space(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken(". The")])


def token_eats_space(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("old.", rstrip=True)])


@pytest.mark.parametrize("edit", [prefix_space, normalized, token_with_space, token_eats_space])
def test_a_text_stays_whole_where_a_cut_would_change_tokens(edit: Callable[[Any], None]) -> None:
    tokenizer = text_tokenizer()
    edit(tokenizer)
    expected, places = whole(tokenizer, SENTENCES, len(SENTENCES) - 3, len(SENTENCES))
    prompter = Prompter(tokenizer)
    assert prompter.ids(SENTENCES) == expected
    encoded = prompter.encode(SENTENCES[:-4], SENTENCES[-4:], [(1, 4)])
    assert (encoded.ids, encoded.positions) == (expected, [places])
