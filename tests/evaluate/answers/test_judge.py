"""A judge behind a URL: its prompts, the verdicts from its replies, and its absence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluated import answers, evaluate
from judge_server import JudgeServer, chat, in_order, make_judge
from typer.testing import CliRunner

from regraft.cli import app
from regraft.errors import InputError, RegraftError
from regraft.evaluate.answers.judge import Judge, add_verdicts
from regraft.evaluate.answers.model import Source
from regraft.evaluate.tasks import Item, ItemDetails


def test_the_prompt_has_question_references_and_answer(
    endpoint: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = make_judge(endpoint)
    assert judge.verdict("Who?", ["Ada", "Ada Sloan"], " Bob \n") == (True, "Yes.")
    (request,) = endpoint.requests
    assert request["model"] == "judge-1"
    assert request["temperature"] == 0
    prompt = endpoint.prompts()[0]
    for part in ("Question: Who?\n", "\n- Ada\n- Ada Sloan\n", "<answer>\nBob\n</answer>"):
        assert part in prompt
    assert endpoint.headers[0]["Authorization"] is None
    monkeypatch.setenv("OPENAI_API_KEY", "second")
    judge.verdict("Who?", ["Ada"], "Bob")
    monkeypatch.setenv("REGRAFT_JUDGE_KEY", "first")
    Judge(f"{endpoint.url}/chat/completions/", "judge-1").verdict("Who?", ["Ada"], "Bob")
    assert [headers["Authorization"] for headers in endpoint.headers[1:]] == [
        "Bearer second", "Bearer first",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("yes", True), ("No.", False), ("**Yes**, it does", True), (" no, for", False),
        ("<think>no, or\nyes</think>\n\nYes", True), ("Nothing", None), ("It agrees: yes", None),
        ("", None),
    ],
)  # fmt: skip
def test_a_verdict_is_the_first_word_and_none_where_it_is_neither(
    endpoint: JudgeServer, text: str, verdict: bool | None
) -> None:
    endpoint.reply = lambda request: (200, chat(text))
    assert make_judge(endpoint).verdict("Who?", ["Ada"], "Ada") == (verdict, text)
    assert len(endpoint.requests) == (2 if verdict is None else 1)


def test_a_reply_without_verdict_is_requested_once_more(endpoint: JudgeServer) -> None:
    endpoint.reply = in_order((200, chat("Well")), (200, chat("No")))
    assert make_judge(endpoint).verdict("Who?", ["Ada"], "Bob") == (False, "No")


def item(question: str) -> Item:
    details = ItemDetails(question=question)
    return Item("qa_1", 64, 0, "", "", "", [], ["Ada"], [], "part", 0, 1.0, details, "")


def test_verdicts_are_written_one_by_one_and_not_requested_twice(
    endpoint: JudgeServer, tmp_path: Path
) -> None:
    items = [item(f"Who is {n}?") for n in range(4)]
    lines = [replace(line, said=f"Ada {line.number}") for line in answers(4, 4)]
    path = tmp_path / "judge" / "m" / "qa_1-64.jsonl"
    yes, no = (200, chat("yes")), (200, chat("no"))
    endpoint.reply = in_order(yes, no, (401, ""))
    with pytest.raises(RegraftError, match="--resume"):
        add_verdicts(make_judge(endpoint), items, lines, path)
    with path.open("a") as file:  # killed while it wrote the third
        file.write('{"number": 2, "verd')
    endpoint.reply = in_order((200, chat("perhaps")), (200, chat("perhaps")), no)
    result = add_verdicts(make_judge(endpoint), items, lines, path)
    assert [line.judge for line in result] == ["agrees", "disagrees", "no verdict", "disagrees"]
    assert [line.score for line in result] == [1.0] * 4
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["number"] for entry in entries] == [0, 1, 2, 3]
    assert [entry["reply"] for entry in entries] == ["yes", "no", "perhaps", "no"]
    assert "Who is 3?" in entries[3]["prompt"]
    before = len(endpoint.requests)
    assert add_verdicts(make_judge(endpoint), items, lines, path) == result
    assert len(endpoint.requests) == before


def test_a_run_reports_the_judges_share_and_resumes_after_the_last_verdict(
    endpoint: JudgeServer, judged: Path, tmp_path: Path
) -> None:
    first, then = ["Yes", "yes", "no"], ["Yes", "hm", "hm", "yes", "no", "no"]  # Yes: to the check
    endpoint.reply = in_order(*((200, chat(text)) for text in first), (403, ""))
    run: dict[str, Any] = {
        "suite": "qa_hard_1,entities", "qa": (str(judged / "squad.json"),), "lengths": "300",
        "items": 6, "twins": False, "judge": endpoint.url, "judge_model": "judge-1",
    }  # fmt: skip
    with pytest.raises(RegraftError, match="--resume"):
        evaluate([str(judged / "model")], tmp_path / "out", **run)
    endpoint.reply = in_order(*((200, chat(text)) for text in then))
    result = evaluate([str(judged / "model")], tmp_path / "out", resume=True, **run)
    cell = result["cells"]["model"]["qa_hard_1"]["300"]
    assert (cell["judge"], cell["judged"], cell["items"]) == (pytest.approx(2 / 5), 5, 6)
    assert cell["score"] == 0  # the random model's
    assert "judge" not in result["cells"]["model"]["entities"]["300"]
    verdicts = tmp_path / "out" / "judge" / "model" / "qa_hard_1-300.jsonl"
    recorded = [json.loads(line)["verdict"] for line in verdicts.read_text().splitlines()]
    assert recorded == [True, False, None, True, False, False]
    assert len(endpoint.requests) == len(first) + 1 + len(then)
    card, page = ((tmp_path / "out" / name).read_text() for name in ("README.md", "index.html"))
    for text in (card, page):
        assert "qa_hard_1: share the judge agrees with" in text
        assert "0.40" in text
        assert "The judge is judge-1" in text
    assert "the judge " in page[page.index("<summary>") :]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge", "http://127.0.0.1:9/v1", "--judge-model", "j"], "does not answer"),
        (["--judge", "http://127.0.0.1:9/v1"], "needs both --judge URL and --judge-model NAME"),
        (["--judge-model", "j"], "needs both"),
        (["--judge", "localhost:9", "--judge-model", "j"], "not an http:// or https:// URL"),
        (["--judge", "http://127.0.0.1:9", "--judge-model", "j", "--scoring", "teacher"],
         "generated free answers"),
        (["--judge", "http://127.0.0.1:9", "--judge-model", "j", "--suite", "needle"],
         "generated free answers"),
    ],
)  # fmt: skip
def test_wrong_options_of_the_judge_are_refused_before_models_load(
    judged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(Source, "load", lambda *_: pytest.fail("a model was loaded"))
    command = [
        "evaluate",
        str(judged / "model"),
        "-o",
        str(tmp_path / "out"),
        "--lengths",
        "300",
    ]
    if "--suite" not in options:
        options = [*options, "--suite", "qa_1", "--qa", str(judged / "squad.json")]
    run = CliRunner().invoke(app, [*command, *options])
    assert run.exit_code == 2
    assert message in run.output
    assert run.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_endpoint_without_verdicts_is_refused(endpoint: JudgeServer) -> None:
    endpoint.reply = lambda request: (200, chat("As a language model, I cannot"))
    with pytest.raises(InputError, match="neither yes nor no but 'As a language"):
        make_judge(endpoint).check()
    endpoint.reply = lambda request: (401, "")
    with pytest.raises(InputError, match=r"HTTP 401.*REGRAFT_JUDGE_KEY"):
        make_judge(endpoint).check()
