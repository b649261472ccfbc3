"""The card and the page of a dataset say what a reader needs, and no more."""

from __future__ import annotations

from pathlib import Path

from cards import assert_tables_are_whole

import regraft
from regraft.data.build.report.card import summary


def test_a_dataset_of_one_document_without_steps(recipe_of_one_text: str) -> None:
    plan = regraft.build_data(recipe_of_one_text, "out", dry_run=True).plan
    assert plan is not None
    assert plan["source one"] == "1 file in 1 part"
    record = regraft.build_data(recipe_of_one_text, "out")
    assert ("one", "1 document read, 1 written, 1 token") in summary(record)
    card = Path("out/README.md").read_text()
    assert_tables_are_whole(card)
    assert "| --- | --- | --- | --: | --: | --: | --: |" in card
    assert "| one | CC0-1.0 | text a.txt | 1 | 1 document, 1 B | 1 | 1 |" in card
    assert "## Steps" not in card
    page = Path("out/index.html").read_text()
    assert "1 document with 1 token (tokenizer bytes) in 1 file." in page
    assert "1 document before, 1 after" in page
