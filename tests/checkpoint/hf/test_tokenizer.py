"""Tokenizers that are refused before a library builds them."""

from __future__ import annotations

import json
from pathlib import Path

import models
import pytest

from regraft.checkpoint.hf.tokenizer import load_tokenizer
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError


def test_a_number_beyond_any_vocabulary_is_refused(tmp_path: Path) -> None:
    """The tokenizers library would list the unused numbers below it, in 8 GB."""
    folder = models.save(tmp_path / "m", models.LLAMA, models.weights(models.LLAMA))
    vocabulary = {"<unk>": 0, "far": 2**31}
    tokenizer = {"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="gives token 'far' the number 2147483648"):
        load_tokenizer(Checkpoint.open(folder))
