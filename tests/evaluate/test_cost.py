"""The plan of an evaluation: items, tokens, time, and the cache of a text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evaluated import speaker
from models import LONG

from regraft.evaluate.answers import cache
from regraft.evaluate.cost import plan, seconds, tokens
from regraft.evaluate.prepare import prepare
from regraft.evaluate.settings import Settings

CPU = torch.device("cpu")


def test_a_plan_counts_items_tokens_and_time(tmp_path: Path) -> None:
    folder = str(speaker(tmp_path / "m", **LONG))
    settings = Settings(("needle", "cwe", "perplexity"), (1024, 2048), items=10, needles=2, texts=3)
    work = prepare([folder], settings, matrix=False)
    read, written = tokens(work)
    assert read[1024] == 2 * 20 * 1024
    assert read[2048] == 2 * 20 * 2048 + 3 * 2048
    assert read[32] == 3 * 2048 // 2 * 5  # a window of 32 for every 8 tokens of the second half
    assert written == 2 * 20 * 120  # of cwe; needles are only scored
    planned = plan(work, CPU)
    assert planned["items"] == 40
    assert planned["tokens to read"] == sum(read.values())
    assert planned["seconds"] > 0
    more = prepare([folder, f"b={folder}"], settings, matrix=False)
    assert seconds(more, CPU) > 0
    assert plan(more, CPU)["items"] == 80


def test_a_plan_counts_a_shared_text_once_and_says_what_its_cache_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(speaker(tmp_path / "m", **LONG))
    settings = Settings(("needle",), (1024,), items=10, questions_per_text=4)
    work = prepare([folder], settings, matrix=False)
    assert tokens(work)[0] == {1024: 2 * (3 * 1024 + 10 * 32)}
    assert tokens(work, lambda length: False)[0] == {1024: 2 * 10 * 1024}
    assert "kB" in str(plan(work, CPU)["cache of a text, at most"])
    monkeypatch.setattr(cache, "free_memory", lambda device: 100.0)
    assert "one question at a time" in str(plan(work, CPU)["cache of a text, at most"])
