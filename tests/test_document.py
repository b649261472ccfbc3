"""YAML as plain values: what cannot be a recipe is refused with its line."""

from __future__ import annotations

import pytest
import yaml

from regraft.document import Document
from regraft.errors import InputError


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("1" + "0" * 400, "too large"),
        (str(-(2**64) - 1), "too large"),
        ('"\\ud800"', "surrogate"),
        ('"a\\0b"', "NUL"),
        ('{"\\udfff": 1}', "surrogate"),
        ("[" * 100 + "]" * 100, "more than 64 values are nested"),
        ("{[a]: 1}", "a key must be a word"),
    ],
)
def test_values_that_no_recipe_needs_are_refused(value: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Document("r.yaml", f"a: 1\nb: {value}\n")
    assert str(caught.value).startswith("r.yaml, line 2: ")


def test_open_brackets_are_not_scanned_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML looks at every open bracket for every token: 20,000 of them took a second."""
    tokens = 0

    def counted(self: yaml.SafeLoader) -> None:
        nonlocal tokens
        tokens += 1
        fetch(self)

    fetch = yaml.SafeLoader.fetch_more_tokens
    monkeypatch.setattr(yaml.SafeLoader, "fetch_more_tokens", counted)
    with pytest.raises(InputError, match="line 1: more than 64 values are nested"):
        Document("r.yaml", "[" * 20000 + "]" * 20000)
    assert tokens < 100


def test_large_numbers_that_fit_and_unusual_keys_are_read() -> None:
    document = Document("r.yaml", f"seed: {2**64}\n3: x\nnull: y\n")
    assert document.value == {"seed": 2**64, "3": "x", "null": "y"}
    assert document.line(("null",)) == 3


def test_a_second_document_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match=r"line 2: a second YAML document.*save each document"):
        Document("r.yaml", "a: 1\n---\nb: 2\n")
