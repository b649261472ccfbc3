"""Models and a text for calibrated extraction."""

from __future__ import annotations

from pathlib import Path

import models
import pytest

from regraft.data.sources import Text, documents
from regraft.data.toy_language import WORDS, write_tokenizer

CONFIG = {**models.LLAMA, "vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Base, extended (a change of full rank) and a text of a few thousand tokens."""
    folder = tmp_path_factory.mktemp("calibrated")
    base, extended, _ = models.family(folder, config=CONFIG, rank=None)
    write_tokenizer(base)
    write_tokenizer(extended)
    text = folder / "text.txt"
    text.write_text("\n".join(documents(Text("synthetic", "notes", documents=8, words=200))))
    return base, extended, text
