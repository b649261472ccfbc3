"""What a server understands is found out at the start, or said in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evaluated import text_tokenizer, world_tokenizer
from served import (
    LLAMA_CPP_PYTHON,
    LLAMA_SERVER,
    SGLANG,
    TEMPLATE,
    VLLM,
    Abilities,
    Reply,
    ToyServer,
    refusal,
)

from regraft.endpoint import Endpoint
from regraft.errors import InputError
from regraft.evaluate.answers.served.probe import find_model, find_protocol
from regraft.evaluate.answers.served.protocol import Protocol
from regraft.evaluate.prompts.length import Prompter

WORDS = "The gardener found a key near the river, and nobody asked. Then"


def endpoint(url: str, timeout: float = 30.0) -> Endpoint:
    return Endpoint(url, timeout, option="--endpoint", keys=("REGRAFT_ENDPOINT_KEY",))


def found(server: ToyServer, *, chat: bool = False, template: str = TEMPLATE) -> Protocol:
    tokenizer = text_tokenizer()
    tokenizer.chat_template = template
    prompter = Prompter(tokenizer, chat=chat)
    prompt = prompter.wrap(WORDS, " they left")
    return find_protocol(endpoint(server.url), "org/toy", prompter, prompt, chat=chat)


@pytest.mark.parametrize(
    ("abilities", "protocol"),
    [
        (VLLM, Protocol("token ids", scores="prompt_logprobs")),
        (SGLANG, Protocol("token ids", scores="echo")),
        (LLAMA_CPP_PYTHON, Protocol("text", adds_start=True, scores="echo", first=2)),
        (LLAMA_SERVER, Protocol("token ids")),
        (Abilities(strict=True, scores=None), Protocol("token ids", strict=True)),
        (Abilities(strict=True, scores="echo"), Protocol("token ids", strict=True, scores="echo")),
        (Abilities(scores="echo of the next token"), Protocol("token ids")),
    ],
)
def test_the_form_of_prompts_and_scores_is_that_of_the_server(
    toy: Path, abilities: Abilities, protocol: Protocol
) -> None:
    with ToyServer(toy, abilities).running() as server:
        assert found(server) == protocol


@pytest.mark.parametrize(
    ("abilities", "prompts"),
    [
        (Abilities(chat=True, prefill=True), "messages with the answer begun"),
        (Abilities(chat=True), "messages"),
    ],
)
def test_a_chat_continues_the_answer_where_it_can(
    toy: Path, abilities: Abilities, prompts: str
) -> None:
    with ToyServer(toy, abilities).running() as server:
        assert found(server, chat=True).prompts == prompts


def test_a_template_that_changes_the_question_is_refused_for_messages(toy: Path) -> None:
    with (
        ToyServer(toy, Abilities(chat=True)).running() as server,
        pytest.raises(InputError, match="does not give back the question"),
    ):
        found(server, chat=True, template="{{ messages[0].content | lower }}|")


def test_another_tokenizer_is_refused(toy: Path) -> None:
    prompter = Prompter(world_tokenizer())
    for abilities in (LLAMA_SERVER, LLAMA_CPP_PYTHON):
        with (
            ToyServer(toy, abilities).running() as server,
            pytest.raises(InputError, match=r"finds \d+ tokens in a text in which the tokenizer"),
        ):
            find_protocol(
                endpoint(server.url), "org/toy", prompter, "note paris violet ; note", chat=False
            )


def test_the_model_is_one_that_the_server_lists(toy: Path) -> None:
    with ToyServer(toy, VLLM).running() as server:
        assert find_model(endpoint(server.url), "org/toy") == 512
        with pytest.raises(InputError, match=r"has no model 'toy' \(it has org/toy\)"):
            find_model(endpoint(server.url), "toy")
        server.models = Reply(404)
        assert find_model(endpoint(server.url), "toy") is None
        server.fault = lambda number: refusal(404, "The model `toy` does not exist.")
        with pytest.raises(InputError, match="HTTP 404 Not Found: The model `toy` does not exist"):
            found(server)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(200, b"<html>"), "the reply is not a list of models"),
        (Reply(200, b'{"data": 3}'), "the reply is not a list of models"),
        (Reply(401), "HTTP 401 Unauthorized.*check --endpoint, --endpoint-model and REGRAFT_END"),
        (Reply(302, location="http://127.0.0.1:1/"), "it redirects"),
        (Reply(200, b" " * 2_000_000), "larger than 1 MB"),
    ],
)
def test_what_is_no_such_server_is_said_at_once(toy: Path, reply: Reply, message: str) -> None:
    with ToyServer(toy, VLLM).running() as server:
        server.models = reply
        with pytest.raises(InputError, match=message):
            find_model(endpoint(server.url), "org/toy")


def test_nobody_there_is_said_at_once() -> None:
    with pytest.raises(InputError, match="does not answer"):
        find_model(endpoint("http://127.0.0.1:9/v1"), "org/toy")


@pytest.mark.parametrize("reply", [Reply(200, b"hm"), Reply(401), Reply(500), Reply(404)])
def test_a_server_that_answers_no_test_prompt_is_refused(toy: Path, reply: Reply) -> None:
    server: Any
    with ToyServer(toy, VLLM).running() as server:
        server.fault = lambda number: reply
        with pytest.raises(InputError, match="does not answer"):
            found(server)
