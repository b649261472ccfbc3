"""Published suites from the user's own files, made here in their layouts, a few lines each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from evaluated import evaluate, text_tokenizer
from models import LLAMA, save, weights
from typer.testing import CliRunner

from regraft.cli import app
from regraft.errors import InputError
from regraft.evaluate.prompts.haystack import Grammar
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.suites import choose
from regraft.evaluate.tasks import Kit, Task, score_text
from regraft.evaluate.tasks import text_scores as metrics

STORY = "\n".join(
    f"Chapter {n}. The ferryman counted {n} lanterns by the river." for n in range(60)
)


@pytest.fixture(scope="module")
def kit() -> Kit:
    return Kit(Prompter(text_tokenizer()), Grammar())


def lines(path: Path, *entries: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def scrolls(number: int, output: str | None, *, query: str = "\n\nQuestion:\nHow many?") -> Any:
    head = "You are given a story and a question. Answer briefly.\n\nStory:\n"
    return {
        "id": f"s{number}", "pid": f"s{number}_{output}", "output": output,
        "input": f"{head}{STORY}{query}\n\nAnswer:\n",
        "document_start_index": len(head), "document_end_index": len(head) + len(STORY),
        "query_start_index": len(head) + len(STORY) + 2,
        "query_end_index": len(head) + len(STORY) + len(query),
        "truncation_seperator": "... [The rest of the story is omitted]\n\n",
    }  # fmt: skip


def by_name(suite: str) -> dict[str, Task]:
    return {task.name: task for task in choose([suite], 0)[0]}


def test_zeroscrolls_prompts_are_the_files_own_and_answers_of_one_id_stand_together(
    tmp_path: Path, kit: Kit
) -> None:
    lines(tmp_path / "narrative_qa" / "validation.jsonl",
          scrolls(1, "sixty"), scrolls(1, "60 lanterns"), scrolls(2, "none"))  # fmt: skip
    lines(tmp_path / "narrative_qa" / "test.jsonl", scrolls(3, None))
    lines(tmp_path / "quality.jsonl", scrolls(4, "B"))
    tasks = by_name(f"zeroscrolls:{tmp_path}")
    assert {
        name: (task.scorer, task.answer_tokens, task.max_items) for name, task in tasks.items()
    } == {
        "zeroscrolls_narrative_qa": ("f1", 64, 2), "zeroscrolls_quality": ("letter", 10, 1),
    }  # fmt: skip
    task = tasks["zeroscrolls_narrative_qa"]
    items = [task.item(kit, 8192, number) for number in range(2)]
    assert sorted(item.references for item in items) == [["none"], ["sixty", "60 lanterns"]]
    assert items[0].prompt == scrolls(1, None)["input"]
    assert items[0].details.text_share == 1
    assert "lanterns" not in items[0].twin
    assert items[0].twin.endswith("Question:\nHow many?\n\nAnswer:\n")


def test_a_long_text_loses_its_end_or_its_middle_and_says_so(
    tmp_path: Path, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "check", lambda names, what: None)
    lines(tmp_path / "qasper" / "validation.jsonl", scrolls(1, "sixty"))
    lines(tmp_path / "longdep_qa.jsonl",
          {"input": STORY, "title": "t", "qa_pairs": str([{"Q": "Who?", "A": "He", "S": []}]),
           "output": "None"})  # fmt: skip
    for suite, start, end in (("zeroscrolls", True, False), ("loogle", True, True)):
        (task,) = by_name(f"{suite}:{tmp_path}").values()
        lengths = [task.answer_tokens + extra for extra in (400, 800)]
        items = [task.item(kit, length, 0) for length in lengths]
        for item, length in zip(items, lengths, strict=True):
            assert 0.9 * (length - task.answer_tokens) < item.tokens <= length - task.answer_tokens
            assert ("Chapter 0." in item.prompt) is start
            assert ("Chapter 59." in item.prompt) is end
            assert "Chapter 31." not in item.prompt
            words = sum(word in item.prompt.split() for word in map(str, range(60)))
            assert item.details.text_share == pytest.approx(words / 60, abs=0.1)
        assert 0 < items[0].details.text_share < items[1].details.text_share < 1
        notice = "[The rest of the story is omitted]\n\nQuestion:"
        assert (notice in items[0].prompt) is (suite == "zeroscrolls")


def test_loogle_is_read_in_both_its_layouts(
    tmp_path: Path, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "check", lambda names, what: None)
    masks = {"<mask-0>": "Tank", "<mask-1>": "Andy"}
    pair = {"Q": "<mask-1> meets <mask-0>.", "A": masks, "S": "Andy meets Tank."}
    lines(
        tmp_path / "old" / "shortdep_cloze.jsonl",
        {"input": STORY, "title": "t", "qa_pairs": str([pair, pair]), "output": "None"},
    )
    lines(
        tmp_path / "old" / "longdep_summarization.jsonl",
        {"input": STORY, "title": "t", "qa_pairs": "none", "output": "A ferryman counts."},
    )
    lines(tmp_path / "new" / "shortdep_qa.jsonl",
          {"id": "1", "doc_id": "9", "task": "shortdep_qa", "title": "t", "context": STORY,
           "question": "Who counts?", "answer": "the ferryman", "evidence": ["x"]})  # fmt: skip
    old, new = by_name(f"loogle:{tmp_path / 'old'}"), by_name(f"loogle:{tmp_path / 'new'}")
    assert {name: (task.max_items, task.judged) for name, task in (old | new).items()} == {
        "loogle_shortdep_cloze": (2, False), "loogle_longdep_summarization": (1, True),
        "loogle_shortdep_qa": (1, True),
    }  # fmt: skip
    item = old["loogle_shortdep_cloze"].item(kit, 8192, 0)
    assert score_text(f"Here: {masks}", item.references, "cloze") == 1
    item = new["loogle_shortdep_qa"].item(kit, 8192, 0)
    assert (item.references, item.details.question) == (["the ferryman"], "Who counts?")
    item = old["loogle_longdep_summarization"].item(kit, 8192, 0)
    assert item.references == ["A ferryman counts."]
    assert item.prompt.endswith("\n\nSummary:")


def bamboo(folder: Path) -> dict[str, Any]:
    """A file for each task, and what a right answer to it looks like."""
    document = "Answer the question. The answer should be a number\n\n{}Document:\nIt was 1912.{}\n"
    question = "Question:\nwhen was it"
    choice = {"question": "Who?", "evidence": "", "options": ["A. he", "B. she"], "answer": "B"}
    paper = {"title": "t", "content": STORY, "hypothesis": "They count."}
    talk = {"content": '"Hello." said by Ada\n"Ah." said by ', "answer": "Ada L"}
    lines(folder / "altqa_4k.jsonl",
          {"content": document.format(f"{question}\n\n", ""), "answer": "1912"},
          {"content": document.format("", f"\n\n{question}"), "answer": "1912"})  # fmt: skip
    lines(folder / "paperqa_16k.jsonl", {**choice, "content": STORY})
    lines(folder / "senhallu_4k.jsonl", {**paper, "answer": True}, {**paper, "answer": False})
    lines(folder / "showspred_4k.jsonl", talk)
    lines(folder / "showssort_4k.jsonl", {"content": ["b", "a", "c"], "answer": [1, 0, 2]})
    lines(
        folder / "reportsumsort_4k.jsonl",
        {"content": STORY, "answer": [2, 0, 1], "summaries": ["x", "y", "z"]},
    )
    lines(folder / "private_eval_4k.jsonl", {"prompt": "import x", "task_id": "1"})
    return {
        "bamboo_altqa_4k": "1912.", "bamboo_paperqa_16k": "[B] she", "bamboo_senhallu_4k": None,
        "bamboo_showspred_4k": "ada l.\nfor sure", "bamboo_showssort_4k": "[1] > [0] > [2]",
        "bamboo_reportsumsort_4k": "2>0>1",
    }  # fmt: skip


def test_bamboo_is_read_task_by_task_and_right_answers_score(tmp_path: Path, kit: Kit) -> None:
    right = bamboo(tmp_path)
    tasks = by_name(f"bamboo:{tmp_path}")
    assert set(tasks) == set(right)
    for name, said in right.items():
        task = tasks[name]
        items = [task.item(kit, 8192, number) for number in range(task.max_items or 0)]
        for item in items:
            answer = said or f"{item.references[0].title()}. It is so."
            assert score_text(answer, item.references, task.scorer) == 1, name
            assert score_text("", item.references, task.scorer) == (item.references == ["no"])
            assert item.prompt.endswith("\n\nAnswer:")
            assert ("lanterns" in item.prompt) >= ("lanterns" in item.twin)
    for number in range(2):
        item = tasks["bamboo_altqa_4k"].item(kit, 8192, number)
        assert "1912" in item.prompt
        assert "when was it" in item.twin
        assert "1912" not in item.twin


def test_rouge_is_asked_for_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    lines(tmp_path / "gov_report" / "validation.jsonl", scrolls(1, "It reports.", query=""))
    with pytest.raises(InputError, match=r"zeroscrolls_gov_report is scored by ROUGE: pip"):
        choose([f"zeroscrolls:{tmp_path}"], 0)


@pytest.mark.parametrize(
    ("suite", "name", "text", "message"),
    [
        ("zeroscrolls", "qasper/test.jsonl", json.dumps(scrolls(1, None)), "not published"),
        ("zeroscrolls", "qasper.jsonl", '{"id": 1, "input": "x"}', "line 1 lacks output, doc"),
        ("zeroscrolls", "story.jsonl", "{}", "it or its folder must be named"),
        ("zeroscrolls", "qasper.jsonl", json.dumps({**scrolls(1, "x"), "input": 3}), "layout"),
        ("loogle", "shortdep_cloze.jsonl", '{"input": "x"}', "neither of LooGLE's layouts"),
        ("loogle", "shortdep_cloze.jsonl", '{"input": "x", "qa_pairs": "[]"}', "no question"),
        ("loogle", "other.jsonl", "{}", "these are named"),
        ("bamboo", "altqa_4k.jsonl", "no json", "is not valid JSON"),
        ("bamboo", "altqa_4k.jsonl", "[1]", "lacks content"),
        ("bamboo", "showssort_4k.jsonl", '{"content": [1], "answer": [0]}', "layout"),
        ("bamboo", "none.txt", "", "has no .jsonl file"),
        ("bamboo", "altqa_4k.jsonl", r'{"content": "\ud800", "answer": "x"}', "surrogate"),
        ("loogle", "shortdep_qa.jsonl", '{"context": ' + "[" * 100_000, "is not valid JSON"),
        (
            "loogle",
            "shortdep_cloze.jsonl",
            json.dumps({"input": "x", "qa_pairs": "-" * 100_000 + "1"}),
            "nested too deep",
        ),
        (
            "loogle",
            "shortdep_cloze.jsonl",
            json.dumps({"input": "x", "qa_pairs": "[{'Q': '\\ud800', 'A': 'y'}]"}),
            "surrogate",
        ),
    ],
)
def test_files_of_another_layout_are_refused_in_one_sentence(
    tmp_path: Path, suite: str, name: str, text: str, message: str
) -> None:
    files = tmp_path / "files"
    path = files / name
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n")
    run = CliRunner().invoke(
        app, ["evaluate", "no-model", "-o", str(tmp_path / "out"), "--suite", f"{suite}:{files}"]
    )
    assert run.exit_code == 2
    assert run.output.count("\n") == 1
    assert message in run.output


def test_a_run_over_local_files_says_what_was_cut(tmp_path: Path) -> None:
    config = {
        **LLAMA, "vocab_size": 600, "bos_token_id": 0, "eos_token_id": 1,
        "max_position_embeddings": 512,
    }  # fmt: skip
    folder = save(tmp_path / "model", config, weights(config))
    text_tokenizer().save_pretrained(folder)
    bamboo(tmp_path / "bamboo")
    result = evaluate(
        [str(folder)], tmp_path / "out", lengths="256,512", items=5,
        suite=f"bamboo:{tmp_path / 'bamboo' / 'senhallu_4k.jsonl'},entities",
    )  # fmt: skip
    cells = result["cells"]["model"]["bamboo_senhallu_4k"]
    assert cells["512"]["items"] == 2  # as many as there are
    assert 0 < cells["256"]["text_share"] < cells["512"]["text_share"] < 1
    assert cells["256"]["tokens"] <= 256 - 32
    assert result["tasks"]["bamboo_senhallu_4k"]["scorer"] == "verdict"
    assert result["overall_tasks"] == ["entities"]  # not of the examined lengths
    card = (tmp_path / "out" / "README.md").read_text()
    assert "bamboo_senhallu_4k: precision / recall / F1" in card
    assert cells["256"]["precision"] == cells["256"]["recall"] == 0  # a random model says no yes
    kept = f"share of their words that remains is {cells['256']['text_share']:.0%} at 256"
    assert kept in card
    lines = (tmp_path / "out" / "items" / "model" / "bamboo_senhallu_4k-256.jsonl").read_text()
    assert all("said" in json.loads(line) for line in lines.splitlines())
