"""A served model answers like the loaded one, at once, through failures, and never twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import text_tokenizer
from served import SGLANG, TEMPLATE, VLLM, Abilities, Reply, ToyServer

from regraft.endpoint import Endpoint, run_at_once
from regraft.errors import RegraftError
from regraft.evaluate.answers.model import LanguageModel, Source
from regraft.evaluate.answers.served.model import TRIES, ServedModel
from regraft.evaluate.answers.served.protocol import Protocol
from regraft.evaluate.prompts.length import Prompter

IDS = Protocol("token ids", scores="prompt_logprobs")
TEXTS = [list(range(10 + n, 40 + n)) for n in range(6)]
KEYS = ("REGRAFT_ENDPOINT_KEY",)


def served(
    server: ToyServer,
    path: Path,
    protocol: Protocol = IDS,
    timeout: float = 60.0,
    requests: int = 2,
) -> ServedModel:
    tokenizer = text_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return ServedModel(
        "toy", Endpoint(server.url, timeout, option="--endpoint", keys=KEYS), "org/toy", protocol,
        Prompter(tokenizer, chat=protocol.is_chat), requests, path / "answers.jsonl",
    )  # fmt: skip


@pytest.fixture(scope="module")
def local(toy: Path) -> LanguageModel:
    return Source("toy", str(toy)).load(torch.device("cpu"))


@pytest.fixture
def server(toy: Path) -> Iterator[ToyServer]:
    with ToyServer(toy, VLLM).running() as running:
        yield running


def test_every_position_has_the_local_models_score(
    server: ToyServer, local: LanguageModel, tmp_path: Path
) -> None:
    positions = [range(1, len(text)) for text in TEXTS]
    ours = served(server, tmp_path).score(TEXTS, positions)
    for (nll, hits), (expected, expected_hits) in zip(
        ours, local.score(TEXTS, positions), strict=True
    ):
        assert torch.allclose(nll, expected, rtol=1e-4)
        assert torch.equal(hits, expected_hits)


def test_greedy_text_is_the_local_models(
    server: ToyServer, local: LanguageModel, tmp_path: Path
) -> None:
    tokenizer = text_tokenizer()
    expected = [tokenizer.decode(ids, skip_special_tokens=True) for ids in local.generate(TEXTS, 7)]
    assert served(server, tmp_path).generate(TEXTS, 7) == expected
    assert {request["temperature"] for request in server.requests} == {0}
    assert {request["max_tokens"] for request in server.requests} == {7}
    for penalty in ("repeat_penalty", "repetition_penalty"):
        assert {request[penalty] for request in server.requests} == {1}


def test_an_answer_is_asked_for_once_ever(server: ToyServer, tmp_path: Path) -> None:
    first = served(server, tmp_path)
    answers = first.generate([*TEXTS, TEXTS[0]], 3)
    assert len(server.requests) == len(TEXTS)
    assert answers[-1] == answers[0]
    with (tmp_path / "answers.jsonl").open("a") as file:  # killed while it wrote another
        file.write('{"key": "1", "te')
    again = served(server, tmp_path)
    assert again.generate([*TEXTS, TEXTS[0]], 3) == answers
    assert len(server.requests) == len(TEXTS)
    again.generate(TEXTS[:1], 4)
    assert len(server.requests) == len(TEXTS) + 1


BUSY = [
    Reply(429), Reply(500), Reply(200, b"no json"), Reply(200, b'{"choices": []}'),
    Reply(200, b"[" * 100_000),
]  # fmt: skip


def test_a_busy_server_is_asked_again(server: ToyServer, tmp_path: Path) -> None:
    expected = served(server, tmp_path).generate(TEXTS[:1], 3)
    server.fault = lambda number: BUSY[number - 2] if number - 2 < len(BUSY) else None
    (tmp_path / "again").mkdir()
    assert served(server, tmp_path / "again").generate(TEXTS[:1], 3) == expected
    assert len(server.requests) == 2 + len(BUSY)


def test_a_server_that_dies_leaves_what_it_answered(server: ToyServer, tmp_path: Path) -> None:
    server.fault = lambda number: Reply(503) if number > 4 else None
    with pytest.raises(RegraftError) as caught:
        served(server, tmp_path, requests=1).generate(TEXTS, 3)
    assert str(caught.value) == (
        f"The endpoint at {server.url} does not answer (HTTP 503 Service Unavailable); 4 of toy's "
        "answers are kept, and the same command with --resume asks for the others."
    )
    assert len(server.requests) == 4 + TRIES
    server.fault = lambda number: None
    assert len(served(server, tmp_path).generate(TEXTS, 3)) == len(TEXTS)
    assert len(server.requests) == 4 + TRIES + 2


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(307, location="http://127.0.0.1:1/"), "HTTP 307: it redirects"),
        (Reply(200, b" " * 65536, repeat=1000), "larger than 1 MB"),
        (Reply(400, b'{"error": {"message": "too long"}}'), "HTTP 400 Bad Request: too long"),
        (Reply(400, b'{"object": "error", "message": "too long"}'), "Bad Request: too long"),
        (Reply(400, b'["too long"]'), r"HTTP 400 Bad Request\)"),
        (Reply(401), "HTTP 401"),
    ],
)
def test_what_trying_again_cannot_help_is_tried_once(
    server: ToyServer, tmp_path: Path, reply: Reply, message: str
) -> None:
    server.fault = lambda number: reply
    with pytest.raises(RegraftError, match=message):
        served(server, tmp_path).generate(TEXTS[:1], 3)
    assert len(server.requests) == 1


def test_a_server_that_hangs_is_waited_for_twice(server: ToyServer, tmp_path: Path) -> None:
    over = threading.Event()
    server.fault = lambda number: Reply(wait=over)
    with pytest.raises(RegraftError, match="timed out"):
        served(server, tmp_path, timeout=0.1).generate(TEXTS[:1], 3)
    over.set()
    assert len(server.requests) <= 2  # a busy machine may not send one in time


@pytest.mark.parametrize(
    "logprobs",
    [
        '[null, {"11": {"logprob": NaN}}]', '[null, {"11": {"logprob": 0.5}}]', "[null]", "null",
        '[null, {"12": {"logprob": -1.0}}]', '[null, {"11": {"logprob": "-1"}}]', "[null, null]",
    ],
)  # fmt: skip
def test_log_probabilities_that_are_none_are_not_believed(
    server: ToyServer, tmp_path: Path, logprobs: str
) -> None:
    server.fault = lambda number: Reply(
        200, f'{{"choices": [{{"text": "", "prompt_logprobs": {logprobs}}}]}}'.encode()
    )
    with pytest.raises(RegraftError, match="the reply is not a completion"):
        served(server, tmp_path).score([[10, 11]], [[1]])


def test_text_that_utf8_cannot_write_is_the_same_after_a_resume(
    server: ToyServer, tmp_path: Path
) -> None:
    server.fault = lambda number: Reply(200, b'{"choices": [{"text": "a\\ud800\\u0000b"}]}')
    answer = served(server, tmp_path).generate(TEXTS[:1], 3)
    assert answer == ["a?\0b"]
    assert served(server, tmp_path).generate(TEXTS[:1], 3) == answer


def test_the_key_stands_in_the_header_alone(
    server: ToyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-Very+Secret/0123456789"
    monkeypatch.setenv("REGRAFT_ENDPOINT_KEY", key)
    echo = f'"choices": [{{"text": "{key}"}}], "error": {{"message": "{key} is wrong"}}'.encode()
    server.fault = lambda number: Reply(200 if number == 1 else 403, b"{" + echo + b"}")
    model = served(server, tmp_path)
    assert model.generate(TEXTS[:1], 3) == ["***"]
    with pytest.raises(RegraftError, match=r"HTTP 403 Forbidden: \*\*\* is wrong"):
        model.generate(TEXTS[1:], 3)
    assert server.headers[0]["Authorization"] == f"Bearer {key}"
    assert key not in (tmp_path / "answers.jsonl").read_text()


PREFILL = Abilities(chat=True, prefill=True)


def chat_prompt(question: str, prefix: str) -> list[int]:
    tokenizer = text_tokenizer()
    tokenizer.chat_template = TEMPLATE
    prompter = Prompter(tokenizer, chat=True)
    return prompter.ids(prompter.wrap(question, prefix))


@pytest.mark.parametrize(
    ("protocol", "messages"),
    [
        (Protocol("messages"), [{"role": "user", "content": "Who came?\nIt was"}]),
        (
            Protocol("messages with the answer begun"),
            [
                {"role": "user", "content": "Who came?"},
                {"role": "assistant", "content": "It was"},
            ],
        ),
    ],
)
def test_a_chat_is_sent_question_and_beginning_of_the_answer(
    toy: Path, tmp_path: Path, protocol: Protocol, messages: list[dict[str, str]]
) -> None:
    with ToyServer(toy, Abilities(chat=True)).running() as server:
        served(server, tmp_path, protocol).generate([chat_prompt(" Who came? ", " It was")], 3)
    assert server.requests[0]["messages"] == messages


def test_a_chat_whose_answer_is_begun_continues_the_local_models_prompt(
    toy: Path, local: LanguageModel, tmp_path: Path
) -> None:
    prompt = chat_prompt("Who came?", " It was")
    expected = text_tokenizer().decode(local.generate([prompt], 5)[0], skip_special_tokens=True)
    protocol = Protocol("messages with the answer begun")
    with ToyServer(toy, PREFILL).running() as server:
        assert served(server, tmp_path, protocol).generate([prompt], 5) == [expected]


def test_a_text_that_has_other_tokens_is_refused(toy: Path, tmp_path: Path) -> None:
    ids = text_tokenizer()(" needle")["input_ids"][1:]
    split = [text_tokenizer().convert_tokens_to_ids(letter) for letter in "needle"]
    assert len(ids) < len(split)
    with ToyServer(toy, SGLANG).running() as server:
        model = served(server, tmp_path, Protocol("text"))
        with pytest.raises(RegraftError, match="does not give back the tokens"):
            model.generate([split], 3)


def test_no_more_than_so_many_works_are_under_way_and_as_many_as_that() -> None:
    under_way: list[int] = []
    most, lock, all_there = 0, threading.Lock(), threading.Barrier(3, timeout=10)

    def work(number: int) -> int:
        nonlocal most
        with lock:
            under_way.append(number)
            most = max(most, len(under_way))
        all_there.wait()  # passes only if three are under way at once
        with lock:
            under_way.remove(number)
        return number * number

    works: list[tuple[int, Callable[[], Any]]] = [(n, lambda n=n: work(n)) for n in range(9)]
    assert dict(run_at_once(works, 3)) == {n: n * n for n in range(9)}
    assert most == 3


def test_after_a_failure_no_work_is_started() -> None:
    started = []

    def work(number: int) -> int:
        started.append(number)
        if number == 2:
            raise ValueError("two")
        return number

    works: list[tuple[int, Callable[[], Any]]] = [(n, lambda n=n: work(n)) for n in range(9)]
    results = run_at_once(works, 1)
    assert [next(results), next(results)] == [(0, 0), (1, 1)]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert started == [0, 1, 2]
