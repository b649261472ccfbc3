"""A served model in an evaluation: a column beside the local models, comparable item by item."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from evaluated import evaluate
from served import LLAMA_CPP_PYTHON, LLAMA_SERVER, SGLANG, VLLM, Abilities, Reply, ToyServer
from typer.testing import CliRunner

from regraft.cli import app
from regraft.errors import RegraftError

RUN: dict[str, Any] = {
    "suite": "needle,icl,entities", "lengths": "300", "items": 2, "depths": 2, "texts": 1,
}  # fmt: skip


def both(toy: Path, server: ToyServer, out: Path, **more: Any) -> dict[str, Any]:
    """The result of the local model and the served one, which is the same."""
    return evaluate(
        [f"local={toy}"], out, endpoint=server.url, endpoint_model="served=org/toy",
        **{**RUN, **more},
    )  # fmt: skip


def compare(out: Path, tasks: set[str], length: int = 300) -> None:
    """The served model's answers are the local model's, item by item."""
    local, served = out / "items" / "local", out / "items" / "served"
    assert {path.name for path in served.iterdir()} == {f"{task}-{length}.jsonl" for task in tasks}
    for path in served.iterdir():
        lines, others = path.read_text().splitlines(), (local / path.name).read_text().splitlines()
        for ours, theirs in zip(map(json.loads, lines), map(json.loads, others), strict=True):
            for key in {"nll", "twin_nll"} & ours.keys():  # other batches, so other sums
                assert ours.pop(key) == pytest.approx(theirs.pop(key), rel=1e-4)
            assert ours == theirs


@pytest.mark.parametrize("abilities", [VLLM, SGLANG, LLAMA_CPP_PYTHON])
def test_each_server_that_scores_gives_the_local_models_verdicts(
    toy: Path, tmp_path: Path, abilities: Abilities
) -> None:
    with ToyServer(toy, abilities).running() as server:
        result = both(toy, server, tmp_path / "out", suite="needle,icl,perplexity")
    compare(tmp_path / "out", {"needle", "icl"})
    figures = result["measures"]
    if abilities is LLAMA_CPP_PYTHON:
        assert figures["served"] == {}
        assert result["models"]["served"]["endpoint"]["unsupported"] == ["perplexity"]
    else:
        mean = figures["local"]["perplexity"]["mean"]
        assert figures["served"]["perplexity"]["mean"] == pytest.approx(mean, rel=1e-4)
        gain = figures["local"]["perplexity"]["gain"]
        assert figures["served"]["perplexity"]["gain"] == pytest.approx(gain, abs=1e-3)


@pytest.mark.parametrize("chat", [False, True])
def test_what_a_server_does_not_support_is_named_and_the_rest_is_a_column(
    toy: Path, tmp_path: Path, chat: bool
) -> None:
    abilities = Abilities(chat=True, prefill=True) if chat else LLAMA_SERVER
    with ToyServer(toy, abilities).running() as server:
        server.url += "/chat/completions" if chat else ""
        words = "served is not examined by entities, since .*no log-prob.*nor by drift \\("
        with pytest.warns(UserWarning, match=words):
            result = both(
                toy, server, tmp_path / "out", suite="fwe,entities,drift", chat=chat, lengths="470"
            )
    compare(tmp_path / "out", {"fwe"}, 470)
    assert result["cells"]["served"].keys() == {"fwe"}
    assert result["cells"]["local"].keys() == {"fwe", "entities"}
    assert result["overall"].keys() == {"local"}  # the mean over both tasks
    endpoint = result["models"]["served"]["endpoint"]
    assert (endpoint.get("scores"), endpoint["unsupported"]) == (None, ["entities", "drift"])
    page = (tmp_path / "out" / "index.html").read_text()
    assert "It was not examined by entities, drift." in page


def test_a_server_without_scores_answers_every_task_in_text(toy: Path, tmp_path: Path) -> None:
    with ToyServer(toy, LLAMA_SERVER).running() as server:
        result = both(toy, server, tmp_path / "out", scoring="generate")
    compare(tmp_path / "out", {"needle", "icl", "entities"})
    assert result["overall"]["served"] == result["overall"]["local"]


def test_a_run_whose_server_died_goes_on_and_asks_only_for_the_rest(
    toy: Path, tmp_path: Path
) -> None:
    alone: dict[str, Any] = {
        "tokenizer": str(tmp_path / "words"), "endpoint_model": "org/toy", **RUN, "items": 4,
        "scoring": "generate",
    }  # fmt: skip
    (tmp_path / "words").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(toy / name, tmp_path / "words")
    with ToyServer(toy, VLLM).running() as server:
        alone["endpoint"] = server.url
        whole = evaluate([], tmp_path / "whole", **alone)
        probes = len(server.requests) - 3 * 2 * 4  # tasks, twins, items
        asked = len(server.requests)
        server.fault = lambda number: Reply(500) if number > asked + 14 else None
        with pytest.raises(RegraftError, match=r"\d+ of toy's answers are kept.*--resume"):
            evaluate([], tmp_path / "out", **alone, endpoint_requests=1)
        server.fault = lambda number: None
        del server.requests[:]
        alone |= {"endpoint_requests": 3, "endpoint_timeout": 50.0}
        again = evaluate([], tmp_path / "out", resume=True, **alone)
        assert again["cells"] == whole["cells"]
        assert len(server.requests) == asked - 14 + probes
    one, other = tmp_path / "whole" / "items", tmp_path / "out" / "items"
    for path in sorted(one.rglob("*.jsonl")):
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()
    assert whole["models"]["toy"]["context_length"] == 512


def test_a_dry_run_names_the_served_model_and_asks_no_item(toy: Path, tmp_path: Path) -> None:
    with ToyServer(toy, VLLM).running() as server:
        plan = both(toy, server, tmp_path / "out", dry_run=True)["plan"]
        asked = {request["max_tokens"] for request in server.requests}
    assert plan["models"] == "local, served"
    assert plan["time of the endpoint"] == "unknown"
    assert asked <= {1, 4}  # the probe's
    assert not (tmp_path / "out").exists()


def test_the_graft_of_a_matrix_may_be_served(toy: Path, tmp_path: Path) -> None:
    roles = [f"recipient={toy}", f"donor={toy}"]
    run = {**RUN, "suite": "entities", "matrix": True}
    with ToyServer(toy, VLLM).running() as server:
        result = evaluate(
            roles, tmp_path / "out", endpoint=server.url, endpoint_model="graft=org/toy", **run
        )
    assert result["overall"]["graft"] == result["overall"]["recipient"]
    assert "retention graft" in result["ratios"]["entities"]["300"]


SECRET = "sk-Very+Secret/0123456789"


def test_the_key_stands_in_no_output(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with ToyServer(toy, VLLM).running() as server:
        url = server.url.replace("http://", "http://me:pass-0123@")
        command = [
            "evaluate", "-o", str(tmp_path / "out"), "--suite", "entities", "--items", "1",
            "--endpoint", url, "--endpoint-model", "org/toy", "--tokenizer", str(toy),
        ]  # fmt: skip
        run = CliRunner().invoke(app, command)
        assert run.exit_code == 0, run.output
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}
        server.fault = lambda number: Reply(500)
        failed = CliRunner().invoke(app, [*command, "--overwrite"])
    assert failed.exit_code == 2
    assert failed.output.count("\n") == 1
    texts = [run.output, failed.output]
    texts += [path.read_text("utf-8", "replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert server.url in "".join(texts)
    for text in texts:
        assert SECRET not in text
        assert "pass-0123" not in text


NAMED = ["--endpoint", "http://127.0.0.1:9/v1", "--endpoint-model", "m"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (NAMED, "does not answer"),
        (NAMED[:2], "needs both --endpoint URL and --endpoint-model NAME"),
        (NAMED[2:], "needs both --endpoint URL and --endpoint-model NAME"),
        (["--tokenizer", "x"], "--tokenizer is for an --endpoint"),
        ([*NAMED, "--endpoint", "localhost:9"], "--endpoint is not an http:// or https:// URL"),
        ([*NAMED, "--endpoint", "http://h/v1/chat/completions"], "give --chat"),
        ([*NAMED, "--endpoint-model", "a/b="], "is no name"),
        ([*NAMED, "--endpoint-model", "toy=m"], "are called toy"),
        ([*NAMED, "--endpoint-requests", "0"], "--endpoint-requests 0 is too few"),
        ([*NAMED, "--endpoint-timeout", "nan"], "--endpoint-timeout nan is too few"),
    ],
)
def test_an_endpoint_that_cannot_be_asked_is_refused_in_one_sentence(
    toy: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    run = CliRunner().invoke(app, ["evaluate", str(toy), "-o", str(tmp_path / "out"), *options])
    assert run.exit_code == 2
    assert message in run.output
    assert run.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("abilities", "options", "message"),
    [
        (VLLM, {"lengths": "600"}, "is served with a context of 512 tokens"),
        (VLLM, {"tokenizer": None}, "give the served model's as --tokenizer FOLDER"),
        (VLLM, {"tokenizer": "nowhere"}, "nowhere does not exist"),
        (VLLM, {"suite": "drift"}, "Nothing is left to measure: toy is not examined by drift"),
        (Abilities(limit=300), {"suite": "perplexity"}, "a token more than the greatest length"),
        (LLAMA_SERVER, {}, "Nothing is left to measure.*--scoring generate"),
        (Abilities(limit=None), {"lengths": None}, "does not state its context length"),
        (VLLM, {"endpoint_model": "donor=org/toy", "matrix": True}, "must be a local model"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_any_item_is_made(
    toy: Path, tmp_path: Path, abilities: Abilities, options: dict[str, Any], message: str
) -> None:
    run = {**RUN, "tokenizer": str(toy), "endpoint_model": "org/toy", **options}
    models = [f"recipient={toy}", f"graft={toy}"] if "matrix" in run else []
    with (
        ToyServer(toy, abilities).running() as server,
        pytest.raises(RegraftError, match=message) as caught,
    ):
        evaluate(models, tmp_path / "out", endpoint=server.url, **run)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()
