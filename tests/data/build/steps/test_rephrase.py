"""`rephrase` takes good replies of an endpoint, asks for none twice, and keeps what it has."""

from __future__ import annotations

import json

import pytest
from built import documents, run_step
from judge_server import JudgeServer, chat
from pydantic import ValidationError

import regraft
from regraft.data.build.document import Document, Message
from regraft.data.build.generation import replies
from regraft.data.build.shards import Shards
from regraft.data.build.steps.rephrase import Rephrase
from regraft.errors import InputError, RegraftError

TEXT = " ".join(f"Ship {n} came to harbour {n} with {n}0 crates of tea." for n in range(10, 22))


@pytest.fixture
def server():
    with JudgeServer.running() as running:
        yield running


@pytest.fixture
def step(server, tmp_path, monkeypatch):
    real = replies.Replies

    def quick(*args, **keys):
        return real(*args, **keys, tries=2, pause=0.001)

    monkeypatch.setattr("regraft.data.build.steps.rephrase.Replies", quick)
    settings = {
        "url": server.url, "model": "writer", "size": 100, "replies": str(tmp_path / "replies"),
    }  # fmt: skip
    return lambda **keys: Rephrase.model_validate({**settings, "kind": "passages", **keys})


def passage(request):
    return request["messages"][0]["content"].split("\n\n")[-1]


def test_good_passages_replace_the_old_ones_and_bad_ones_do_not(server, step):
    def reply(request):
        old = passage(request)
        if "Ship 10" in old:
            return 200, chat("<think>hm</think>" + old.upper())
        return 200, chat(old if "Ship 14" in old else "short" if "Ship 18" in old else old.upper())

    server.reply = reply
    (made,), statistics = run_step(step(), documents(TEXT + "\n"))
    assert made.text.startswith("SHIP 10")
    assert len(made.text) == len(TEXT) + 1
    assert "Ship 14" in made.text
    assert "short" not in made.text
    assert statistics.counts["a copy"] == statistics.counts["too short or too long"] == 1
    assert statistics.counts["passages in other words"] == len(server.requests) - 2
    assert made.metadata == {"rephrase": "writer"}
    assert {request["max_tokens"] for request in server.requests} == {4096}


def test_questions_follow_a_document_whose_pieces_answer_them(server, step):
    def reply(request):
        number = passage(request).split()[1]
        if number == "10":
            return 200, chat("I cannot.")
        return 200, chat(f"Question: What came with Ship {number}?\nAnswer: {number}0 crates")

    server.reply = reply
    (made,), statistics = run_step(step(kind="questions", questions=9), documents(TEXT))
    assert made.text.startswith(TEXT + "\n\nWhat came with Ship")
    assert statistics.counts["no question and answer"] == 1
    assert made.text.count("What came with") == statistics.counts["questions"]
    assert made.text.endswith(made.metadata["answer"])


def test_no_prompt_is_sent_twice_and_a_failure_keeps_replies(server, step):
    server.reply = lambda request: (200, chat(passage(request).upper()))
    first, _ = run_step(step(), documents(TEXT))
    sent = len(server.requests)
    again, _ = run_step(step(), documents(TEXT))
    assert (again, len(server.requests)) == (first, sent)
    server.reply = lambda request: (500, "")
    with pytest.raises(RegraftError, match=r"does not answer \(HTTP 500.*with --resume asks"):
        run_step(step(), documents(TEXT, TEXT + " One more."))
    server.reply = lambda request: (200, chat(passage(request).upper()))
    sent = len(server.requests)
    run_step(step(), documents(TEXT, TEXT + " One more."))
    assert sent < len(server.requests) < sent + 8


def test_a_resumed_build_with_all_replies_asks_nothing(server, step, tmp_path, monkeypatch):
    server.reply = lambda request: (200, chat(passage(request).upper()))
    settings = json.dumps({"kind": "passages", **step().model_dump(exclude_unset=True)})
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": TEXT}))
    (tmp_path / "recipe.yaml").write_text(
        f"sources: [{{name: a, licence: CC0-1.0, jsonl: {tmp_path}/a.jsonl}}]\n"
        f"steps: [rephrase: {settings}]\noutput: {{tokenizer: bytes}}\n"
    )
    arguments = (tmp_path / "recipe.yaml", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Shards, "add", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            regraft.build_data(*arguments)
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(InputError, match="does not answer"):
        regraft.build_data(*arguments)
    record = regraft.build_data(*arguments, resume=True)
    assert record.steps[0].counts["passages in other words"] > 1


def test_a_refused_prompt_leaves_its_passage(server, step):
    server.reply = lambda request: (400, json.dumps({"error": {"message": "filtered"}}))
    (made,), statistics = run_step(step(), documents(TEXT))
    assert made.text == TEXT
    assert list(statistics.counts) == ["no reply"]


def test_an_endpoint_that_refuses_is_found_before_the_work(server, step):
    server.reply = lambda request: (200, chat("yes"))
    step().check_server()
    assert server.requests[-1]["max_tokens"] == 1
    server.reply = lambda request: (401, "")
    with pytest.raises(InputError, match=r"does not answer \(HTTP 401.*REGRAFT_REPHRASE_KEY"):
        step().check_server()
    with pytest.raises(InputError, match="url is not an http"):
        step(url="file:///etc").check()
    with pytest.raises(ValidationError, match=r"the prompt has no \{text\}"):
        step(prompt="Write.")


def test_conversations_and_unchosen_documents_stay(server, step):
    chats = Document("a", "c", "a", messages=(Message("user", "a"),))
    items = [chats, *documents(TEXT)]
    assert run_step(step(kind="questions", share=0.0), items)[0] == items
    assert server.requests == []
