"""Cards: what a name or a text holds is shown as it is, and is never markup."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from jinja2 import UndefinedError

from regraft.markdown import Markdown, escape, fenced, render, table, yaml_scalar

HOSTILE = "a|b <img src=x onerror=alert(1)> ![x](http://h) [y](http://h) `c` *d* &lt; \n# e\u202e"


def test_nothing_of_a_hostile_name_is_markup() -> None:
    line = escape(HOSTILE)
    assert "\n" not in line
    assert "\u202e" not in line
    assert "<" not in line
    assert "](" not in line.replace("\\](", "")
    for character in "|`*":
        assert line.count(character) == line.count("\\" + character)


@pytest.mark.parametrize(
    "text",
    ["org/Model-3_8B.v2", "theta 500000, 8k  ->  64k", "q_proj 0.1 [0.0, 0.2]", "-3.1%", "a ~ b"],
)
def test_what_is_harmless_stays_readable(text: str) -> None:
    assert escape(text) == " ".join(text.split())


@pytest.mark.parametrize("text", ["# a", "> a", "- a", "---", "=== a", "_a_", "~~a~~"])
def test_marks_that_begin_a_line_or_surround_a_word_are_escaped(text: str) -> None:
    assert escape(text).startswith("\\")


def test_a_template_escapes_every_value_and_no_markdown() -> None:
    text = render("{{ a }} {{ b }} {{ [a, 1] | row }}", a="x|y", b=Markdown("**z**"))
    assert text == "x\\|y **z** | x\\|y | 1 |"
    assert (
        render("{{ a.items() | rows }}\n", a={"x|y": 1, "z": "*"}) == "| x\\|y | 1 |\n| z | \\* |\n"
    )
    with pytest.raises(UndefinedError):
        render("{{ b }}", a=1)


def test_a_table_has_as_many_cells_as_its_head() -> None:
    lines = table([["a", "b"], ["x|y", "1"]]).splitlines()
    assert lines == ["| a | b |", "| --- | --: |", "| x\\|y | 1 |"]


@pytest.mark.parametrize(
    ("cells", "rule"),
    [
        (["1,024", "3 (0.5%)", "-"], "--:"),
        (["0.50 [0.41, 0.60]", "n/a"], "--:"),
        (["64k", "-2e-05", "3 documents", "<1%"], "--:"),
        (["CC0-1.0", "MIT"], "---"),
        (["0BSD", "1"], "---"),
        (["7/8", "1"], "---"),
        (["-", ""], "---"),
        ([], "---"),
    ],
)
def test_columns_of_numbers_are_to_the_right(cells: list[str], rule: str) -> None:
    rows = [["name", "b"], *([str(number), cell] for number, cell in enumerate(cells))]
    assert table(rows).splitlines()[1] == f"| --- | {rule} |"


def test_a_code_block_is_not_left_by_its_text() -> None:
    text = "a\n```\n# out"
    assert fenced(text, "yaml").splitlines() == ["````yaml", *text.splitlines(), "````"]


@pytest.mark.parametrize(
    "name", ["org/name", "a: b", "x\ny: 1", "- a", "null", "1e3", "a #b", "org/1"]
)
def test_front_matter_reads_back(name: str) -> None:
    assert yaml.safe_load(f"base_model: {yaml_scalar(name)}") == {"base_model": name}


def test_the_cards_of_extraction_and_graft_escape_names(tmp_path: Path) -> None:
    import models

    from regraft.adapters.apply import apply as graft
    from regraft.adapters.apply.card import write_graft_card
    from regraft.adapters.extract import evidence, extract
    from regraft.adapters.extract.card import write_adapter_card

    base, extended, derivative = models.family(tmp_path)
    record = extract.extract_lora(base, extended, tmp_path / "a", rank=2, verify=False)
    hostile = dataclasses.replace(record.base, name=HOSTILE, revision="0")
    record = dataclasses.replace(record, base=hostile)
    write_adapter_card(tmp_path / "a", record, evidence.summary(record))
    made = graft.apply_lora(tmp_path / "a", derivative, tmp_path / "g")
    checkpoint = dataclasses.replace(made.checkpoint, name=HOSTILE, revision="0")
    made = dataclasses.replace(made, checkpoint=checkpoint)
    write_graft_card(tmp_path / "g", made, graft.summary(made))
    for folder in ("a", "g"):
        text = (tmp_path / folder / "README.md").read_text()
        _, front, body = text.split("---\n", 2)
        assert yaml.safe_load(front)["base_model"] == HOSTILE.partition("@")[0]
        prose = "\n".join(line for line in body.splitlines() if not line.startswith("    "))
        assert "<img" not in prose
        assert "](http" not in prose.replace("\\](http", "").replace("](https://pypi", "")
