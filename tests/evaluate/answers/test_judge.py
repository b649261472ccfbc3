"""A judge behind a URL: its prompts, the verdicts from its replies, and its absence."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from evaluated import answers, evaluate, text_tokenizer
from models import LLAMA, save, weights
from typer.testing import CliRunner

from regraft.cli import app
from regraft.errors import InputError, RegraftError
from regraft.evaluate.answers.judge import Judge, add_verdicts
from regraft.evaluate.answers.model import Source
from regraft.evaluate.tasks import Item, ItemDetails

Reply = Callable[[dict[str, Any]], tuple[int, str]]  # (status, text) to a request


class Endpoint:
    """Speaks /v1/chat/completions; `reply` says what."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.paths: list[str] = []
        self.reply: Reply = lambda request: (200, chat("Yes."))
        self.stream: Callable[[Callable[[bytes], Any]], None] | None = None  # instead of a text
        self.location = self.reason = None
        self.any_path = False
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                request = json.loads(self.rfile.read(size))
                endpoint.requests.append(request)
                endpoint.headers.append(self.headers)
                endpoint.paths.append(self.path)
                known = endpoint.any_path or self.path == "/v1/chat/completions"
                status, text = endpoint.reply(request) if known else (404, "")
                self.send_response(status, endpoint.reason)
                if endpoint.location:
                    self.send_header("Location", endpoint.location)
                self.end_headers()
                try:
                    if endpoint.stream:
                        endpoint.stream(self.wfile.write)
                    else:
                        self.wfile.write(text.encode())
                except OSError:  # the client has gone
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def prompts(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.requests]


def chat(text: str) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def one_by_one(*replies: tuple[int, str]) -> Reply:
    left = iter(replies)
    return lambda request: next(left)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("REGRAFT_JUDGE_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    running = Endpoint()
    thread = threading.Thread(target=running.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.server.shutdown()
    running.server.server_close()
    thread.join()


def quick(endpoint: Endpoint, **settings: Any) -> Judge:
    return Judge(endpoint.url, "judge-1", pause=0.001, **settings)


def test_the_judge_is_shown_question_references_and_answer(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = quick(endpoint)
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
    endpoint: Endpoint, text: str, verdict: bool | None
) -> None:
    endpoint.reply = lambda request: (200, chat(text))
    assert quick(endpoint).verdict("Who?", ["Ada"], "Ada") == (verdict, text)
    assert len(endpoint.requests) == (2 if verdict is None else 1)


def test_what_said_neither_is_asked_once_more(endpoint: Endpoint) -> None:
    endpoint.reply = one_by_one((200, chat("Well")), (200, chat("No")))
    assert quick(endpoint).verdict("Who?", ["Ada"], "Bob") == (False, "No")


def test_a_busy_judge_is_asked_again_and_not_for_ever(endpoint: Endpoint) -> None:
    busy = [(500, ""), (429, ""), (200, "no json"), (200, json.dumps({"choices": []}))]
    endpoint.reply = one_by_one(*busy, (200, chat("yes")))
    assert quick(endpoint).verdict("Who?", ["Ada"], "Ada")[0] is True
    assert len(endpoint.requests) == 5
    endpoint.reply = lambda request: (503, "")
    with pytest.raises(RegraftError, match=r"does not answer \(HTTP 503"):
        quick(endpoint, tries=3).verdict("Who?", ["Ada"], "Ada")
    assert len(endpoint.requests) == 5 + 3
    endpoint.reply = lambda request: (401, "")
    with pytest.raises(RegraftError, match="HTTP 401"):
        quick(endpoint).verdict("Who?", ["Ada"], "Ada")
    assert len(endpoint.requests) == 5 + 3 + 1  # refused is refused


def test_a_judge_that_never_replies_is_waited_for_within_bounds(endpoint: Endpoint) -> None:
    over = threading.Event()
    endpoint.reply = lambda request: (200, chat("yes")) if over.wait(5) else (500, "")
    with pytest.raises(RegraftError, match="timed out"):
        quick(endpoint, tries=1, timeout=0.1).verdict("Who?", ["Ada"], "Ada")
    over.set()


def test_a_reply_that_trickles_is_not_waited_for_longer_than_the_timeout(
    endpoint: Endpoint,
) -> None:
    over = threading.Event()

    def trickle(write: Callable[[bytes], Any]) -> None:
        while not over.wait(0.02):
            write(b" ")

    endpoint.stream = trickle
    with pytest.raises(RegraftError, match=r"timed out after 0\.3 s"):
        quick(endpoint, tries=1, timeout=0.3).verdict("Who?", ["Ada"], "Ada")
    over.set()


def test_a_reply_larger_than_a_megabyte_is_not_read(endpoint: Endpoint) -> None:
    written = 0

    def flood(write: Callable[[bytes], Any]) -> None:
        nonlocal written
        while written < 200_000_000:
            write(b" " * 65536)
            written += 65536

    endpoint.stream = flood
    with pytest.raises(RegraftError, match="larger than 1 MB"):
        quick(endpoint).verdict("Who?", ["Ada"], "Ada")
    assert len(endpoint.requests) == 1
    assert written < 100_000_000  # the rest stays in the sockets' buffers


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("REGRAFT_JUDGE_KEY", SECRET)
    endpoint.reply = lambda request: (status, "")
    endpoint.location = f"{endpoint.url}/chat/completions"
    with pytest.raises(RegraftError, match=f"HTTP {status}: it redirects") as caught:
        quick(endpoint).verdict("Who?", ["Ada"], "Ada")
    assert len(endpoint.requests) == 1
    assert SECRET not in str(caught.value)


SECRET = "sk-Very+Secret/0123456789=="
QUOTED = "sk-Very%2BSecret%2F0123456789%3D%3D"


@pytest.mark.parametrize("where", ["header", "query", "path", "user"])
@pytest.mark.parametrize("reply", ["yes", "echo", "refused", "junk", "away"])
def test_secrets_stand_in_no_message_file_or_result(
    endpoint: Endpoint, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    where: str, reply: str,
) -> None:  # fmt: skip
    base = endpoint.url.removesuffix("/v1").removeprefix("http://")
    url = {
        "header": f"http://{base}/v1", "query": f"http://{base}/v1?api-version=1&key={QUOTED}",
        "path": f"http://{base}/{QUOTED}/v1", "user": f"http://me:{QUOTED}@{base}/v1",
    }[where]  # fmt: skip
    if where == "header":
        monkeypatch.setenv("REGRAFT_JUDGE_KEY", SECRET)
    encoded = base64.b64encode(f"me:{SECRET}".encode()).decode()
    echo = f"{url} {SECRET} {QUOTED}" + (f" {encoded}" if where == "user" else "")
    endpoint.any_path = True
    endpoint.reply = {
        "yes": lambda request: (200, chat("yes")),
        "echo": lambda request: (200, chat(f"yes, {echo}")),
        "refused": lambda request: (401, echo),
        "junk": lambda request: (200, chat(f"hm {echo}")),
        "away": lambda request: (200, chat("yes")) if len(endpoint.requests) == 1 else (403, echo),
    }[reply]
    endpoint.reason = echo if reply in ("refused", "away") else None
    out = tmp_path / "out"
    command = [
        "evaluate", str(folder / "model"), "-o", str(out), "--suite", "qa_1", "--qa",
        str(folder / "squad.json"), "--lengths", "300", "--items", "2", "--no-twins", "--judge",
        url, "--judge-model", "j", "--debug",
    ]  # fmt: skip
    run = CliRunner().invoke(app, command)
    if reply in ("yes", "echo"):
        assert run.exit_code == 0, run.output
        assert (
            f"http://{base}/" in json.loads((out / "result.json").read_text())["settings"]["judge"]
        )
        if where == "query":
            assert f"key={QUOTED}" in endpoint.paths[0]
        if where == "user":
            assert endpoint.headers[0]["Authorization"] == f"Basic {encoded}"
    else:
        assert run.exit_code in (1, 2)
    texts = [run.output, *(repr(error) for error in (run.exception,))]
    texts += [path.read_text("utf-8", "replace") for path in tmp_path.rglob("*") if path.is_file()]
    for text in texts:
        for secret in (SECRET, QUOTED, encoded):
            assert secret not in text


def item(question: str) -> Item:
    details = ItemDetails(question=question)
    return Item("qa_1", 64, 0, "", "", "", [], ["Ada"], [], "part", 0, 1.0, details, "")


def test_verdicts_are_kept_one_by_one_and_not_asked_for_twice(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    items = [item(f"Who is {n}?") for n in range(4)]
    lines = [replace(line, said=f"Ada {line.number}") for line in answers(4, 4)]
    path = tmp_path / "judge" / "m" / "qa_1-64.jsonl"
    yes, no = (200, chat("yes")), (200, chat("no"))
    endpoint.reply = one_by_one(yes, no, (401, ""))
    with pytest.raises(RegraftError, match="--resume"):
        add_verdicts(quick(endpoint), items, lines, path)
    with path.open("a") as file:  # killed while it wrote the third
        file.write('{"number": 2, "verd')
    endpoint.reply = one_by_one((200, chat("perhaps")), (200, chat("perhaps")), no)
    result = add_verdicts(quick(endpoint), items, lines, path)
    assert [line.judge for line in result] == ["agrees", "disagrees", "no verdict", "disagrees"]
    assert [line.score for line in result] == [1.0] * 4
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["number"] for entry in entries] == [0, 1, 2, 3]
    assert [entry["reply"] for entry in entries] == ["yes", "no", "perhaps", "no"]
    assert "Who is 3?" in entries[3]["prompt"]
    before = len(endpoint.requests)
    assert add_verdicts(quick(endpoint), items, lines, path) == result
    assert len(endpoint.requests) == before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def test_a_run_has_the_judges_share_beside_the_score_and_goes_on_where_the_judge_left_it(
    endpoint: Endpoint, folder: Path, tmp_path: Path
) -> None:
    first, then = ["Yes", "yes", "no"], ["Yes", "hm", "hm", "yes", "no", "no"]  # Yes: to the check
    endpoint.reply = one_by_one(*((200, chat(text)) for text in first), (403, ""))
    run: dict[str, Any] = {
        "suite": "qa_hard_1,entities", "qa": (str(folder / "squad.json"),), "lengths": "300",
        "items": 6, "twins": False, "judge": endpoint.url, "judge_model": "judge-1",
    }  # fmt: skip
    with pytest.raises(RegraftError, match="--resume"):
        evaluate([str(folder / "model")], tmp_path / "out", **run)
    endpoint.reply = one_by_one(*((200, chat(text)) for text in then))
    result = evaluate([str(folder / "model")], tmp_path / "out", resume=True, **run)
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
def test_a_judge_that_cannot_judge_is_refused_before_models_load(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(Source, "load", lambda *_: pytest.fail("a model was loaded"))
    command = ["evaluate", str(folder / "model"), "-o", str(tmp_path / "out"), "--lengths", "300"]
    if "--suite" not in options:
        options = [*options, "--suite", "qa_1", "--qa", str(folder / "squad.json")]
    run = CliRunner().invoke(app, [*command, *options])
    assert run.exit_code == 2
    assert message in run.output
    assert run.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_endpoint_that_is_no_judge_is_refused(endpoint: Endpoint) -> None:
    endpoint.reply = lambda request: (200, chat("As a language model, I cannot"))
    with pytest.raises(InputError, match="neither yes nor no but 'As a language"):
        quick(endpoint).check()
    endpoint.reply = lambda request: (401, "")
    with pytest.raises(InputError, match=r"HTTP 401.*REGRAFT_JUDGE_KEY"):
        quick(endpoint).check()
