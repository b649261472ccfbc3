"""A judge's endpoint, and a model with questions for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluated import text_tokenizer
from judge_server import JudgeServer
from models import LLAMA, save, weights


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("REGRAFT_JUDGE_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with JudgeServer.running() as running:
        yield running


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model and a file of questions for it."""
    root = tmp_path_factory.mktemp("judged")
    config = {
        **LLAMA, "vocab_size": 600, "bos_token_id": 0, "eos_token_id": 1,
        "max_position_embeddings": 512,
    }  # fmt: skip
    text_tokenizer().save_pretrained(save(root / "model", config, weights(config)))
    paragraphs = [
        {"context": f"Alba{n} was founded by Berit{n}. " * 2,
         "qas": [{"question": f"Who founded Alba{n}?", "answers": [{"text": f"Berit{n}"}]}]}
        for n in range(100, 140)
    ]  # fmt: skip
    (root / "squad.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return root
