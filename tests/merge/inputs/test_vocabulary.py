"""Vocabularies of a merge's inputs, read from tokenizer.json."""

from __future__ import annotations

import json

import pytest

from regraft.errors import CheckpointError
from regraft.merge.inputs.vocabulary import _vocabulary


@pytest.mark.parametrize(
    "damage",
    [
        {"added_tokens": [{"content": float("nan"), "id": 2}]},
        {"added_tokens": [{"content": "c", "id": "2"}]},
        {"model": {"vocab": [[1, 0.5]]}},
    ],
)
def test_tokens_and_numbers_of_another_type_are_refused(damage, tmp_path):
    content = {"model": {"vocab": {"a": 0, "b": 1}}, **damage}
    with pytest.raises(CheckpointError, match="is no tokenizer of the tokenizers library"):
        _vocabulary(tmp_path / "tokenizer.json", json.dumps(content).encode())
