"""Exact and near duplicates are dropped, different texts are not, evaluation prompts are."""

from __future__ import annotations

import json
import random

import pytest
from built import documents, run_step
from pydantic import ValidationError

from regraft.data.build.disk_table import DiskTable
from regraft.data.build.pipeline import PlacedStep, run_steps
from regraft.data.build.steps.dedup import Dedup
from regraft.data.build.tokens import ByteCounter

RNG = random.Random(0)
VOCABULARY = [f"w{i}" for i in range(2000)]


def _words(count):
    return [RNG.choice(VOCABULARY) for _ in range(count)]


def test_exact_duplicates_differ_in_space_and_case_only():
    first = " ".join(_words(50))
    passed, statistics = run_step(
        Dedup(near=False), documents(first, first.upper().replace(" ", "\n"), first + " x")
    )
    assert [one.id for one in passed] == ["0", "2"]
    assert statistics.dropped == {"exact duplicate": 1}


def test_two_steps_side_by_side_have_tables_of_their_own(tmp_path):
    steps = [PlacedStep(f"all/{i}-dedup", Dedup(near=False)) for i in (1, 2)]
    texts = documents("a b", "A  b", "c")
    passed, statistics = run_steps(
        steps, iter(texts), ByteCounter(), tmp_path, seed=0, device="cpu"
    )
    assert next(passed).id == "0"
    assert len(list(tmp_path.iterdir())) == 2 * 3
    assert [one.id for one in passed] == ["2"]
    assert [one.out.documents for one in statistics] == [2, 2]


def test_buckets_hold_numbers_and_each_signature_is_stored_once(monkeypatch):
    stored = []
    add = DiskTable.add

    def record(self, pairs):
        stored.extend(pairs)
        add(self, pairs)

    monkeypatch.setattr(DiskTable, "add", record)
    texts = [" ".join(_words(30)) for _ in range(5)]
    passed, _ = run_step(Dedup(), documents(*texts, texts[3] + " x", texts[0] + " y"))
    assert [one.id for one in passed] == ["0", "1", "2", "3", "4"]
    assert len(stored) == 5 * 14
    assert {len(key) + len(value) for key, value in stored} == {16}


def test_more_hashes_than_a_document_can_have_are_refused():
    with pytest.raises(ValidationError, match="above 10,000 hashes"):
        Dedup(bands=100_000, band_rows=100_000)


def test_near_duplicates_are_found_and_different_texts_kept():
    """A text with 2% of its words changed shares about 82% of 5-grams; the similarity is estimated
    from 112 hashes, so the limit is lower."""
    texts = []
    for _ in range(12):
        words = _words(400)
        changed = list(words)
        for at in RNG.sample(range(400), 4):
            changed[at] = RNG.choice(VOCABULARY)
        texts += [" ".join(words), " ".join(changed)]
    passed, statistics = run_step(Dedup(similarity=0.7), documents(*texts))
    kept = {int(one.id) for one in passed}
    assert set(range(0, 24, 2)) <= kept  # the first of each pair
    assert statistics.dropped["near duplicate"] >= 11
    assert statistics.scores["similarity of near duplicates"].least >= 0.7


def test_texts_below_the_similarity_are_kept():
    words = _words(400)
    half = words[:200] + _words(200)
    passed, _ = run_step(Dedup(bands=56, band_rows=2), documents(" ".join(words), " ".join(half)))
    assert len(passed) == 2


def test_texts_with_an_evaluation_prompt_are_dropped(tmp_path):
    prompt = _words(30)
    (tmp_path / "result.json").write_text(json.dumps({"samples": [{"prompt": " ".join(prompt)}]}))
    (tmp_path / "items.jsonl").write_text(json.dumps({"question": " ".join(_words(30))}) + "\n")
    (tmp_path / "prompts.txt").write_text(" ".join(_words(20)))
    files = [str(tmp_path / name) for name in ("result.json", "items.jsonl", "prompts.txt")]
    texts = [
        " ".join(_words(50) + prompt[3:16] + _words(50)).upper(),
        " ".join(_words(50) + prompt[3:15] + _words(50)),  # twelve words
        (tmp_path / "prompts.txt").read_text() + " x",
        " ".join(_words(99)),
    ]
    step = Dedup(near=False, prompts=files)
    step.check()
    assert step.inputs() == files
    passed, statistics = run_step(step, documents(*texts))
    assert [one.id for one in passed] == ["1", "3"]
    assert statistics.dropped == {"holds an evaluation prompt": 2}
