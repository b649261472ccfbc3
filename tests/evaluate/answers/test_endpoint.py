"""The connection to an endpoint: retries, time limits, size limits, redirects and secrets."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer, chat, in_order, make_judge
from typer.testing import CliRunner

from regraft.cli import app
from regraft.errors import RegraftError


def test_a_busy_judge_is_tried_again_a_limited_number_of_times(endpoint: JudgeServer) -> None:
    busy = [(500, ""), (429, ""), (200, "no json"), (200, json.dumps({"choices": []}))]
    endpoint.reply = in_order(*busy, (200, chat("yes")))
    assert make_judge(endpoint).verdict("Who?", ["Ada"], "Ada")[0] is True
    assert len(endpoint.requests) == 5
    endpoint.reply = lambda request: (503, "")
    with pytest.raises(RegraftError, match=r"does not answer \(HTTP 503"):
        make_judge(endpoint, tries=3).verdict("Who?", ["Ada"], "Ada")
    assert len(endpoint.requests) == 5 + 3
    endpoint.reply = lambda request: (401, "")
    with pytest.raises(RegraftError, match="HTTP 401"):
        make_judge(endpoint).verdict("Who?", ["Ada"], "Ada")
    assert len(endpoint.requests) == 5 + 3 + 1  # a refusal is not tried again


def test_a_judge_that_never_replies_times_out(endpoint: JudgeServer) -> None:
    over = threading.Event()
    endpoint.reply = lambda request: (200, chat("yes")) if over.wait(5) else (500, "")
    with pytest.raises(RegraftError, match="timed out"):
        make_judge(endpoint, tries=1, timeout=0.1).verdict("Who?", ["Ada"], "Ada")
    over.set()


def test_a_slow_reply_times_out_although_bytes_arrive(
    endpoint: JudgeServer,
) -> None:
    over = threading.Event()

    def trickle(write: Callable[[bytes], Any]) -> None:
        while not over.wait(0.02):
            write(b" ")

    endpoint.stream = trickle
    with pytest.raises(RegraftError, match=r"timed out after 0\.3 s"):
        make_judge(endpoint, tries=1, timeout=0.3).verdict("Who?", ["Ada"], "Ada")
    over.set()


def test_a_reply_larger_than_a_megabyte_is_not_read(endpoint: JudgeServer) -> None:
    written = 0

    def flood(write: Callable[[bytes], Any]) -> None:
        nonlocal written
        while written < 200_000_000:
            write(b" " * 65536)
            written += 65536

    endpoint.stream = flood
    with pytest.raises(RegraftError, match="larger than 1 MB"):
        make_judge(endpoint).verdict("Who?", ["Ada"], "Ada")
    assert len(endpoint.requests) == 1
    assert written < 100_000_000  # the rest stays in the sockets' buffers


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(
    endpoint: JudgeServer, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("REGRAFT_JUDGE_KEY", SECRET)
    endpoint.reply = lambda request: (status, "")
    endpoint.location = f"{endpoint.url}/chat/completions"
    with pytest.raises(RegraftError, match=f"HTTP {status}: it redirects") as caught:
        make_judge(endpoint).verdict("Who?", ["Ada"], "Ada")
    assert len(endpoint.requests) == 1
    assert SECRET not in str(caught.value)


SECRET = "sk-Very+Secret/0123456789=="


QUOTED = "sk-Very%2BSecret%2F0123456789%3D%3D"


@pytest.mark.parametrize("where", ["header", "query", "path", "user"])
@pytest.mark.parametrize("reply", ["yes", "echo", "refused", "junk", "away"])
def test_secrets_are_in_no_message_file_or_result(
    endpoint: JudgeServer, judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
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
        "evaluate", str(judged / "model"), "-o", str(out), "--suite", "qa_1", "--qa",
        str(judged / "squad.json"), "--lengths", "300", "--items", "2", "--no-twins", "--judge",
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
