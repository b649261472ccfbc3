"""A served model: the same verdicts as the model itself, from every kind of server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluated import evaluate
from served import (
    LLAMA_CPP_PYTHON,
    SGLANG,
    VLLM,
    Abilities,
    ToyServer,
    readable_toy,
)

from regraft.evaluate.answers.served import model as served_model
from regraft.evaluate.answers.served import probe

RUN: dict[str, Any] = {"suite": "needle,icl,entities", "lengths": "300", "items": 3, "texts": 1}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("REGRAFT_ENDPOINT_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for module in (probe, served_model):
        monkeypatch.setattr(module, "PAUSE", 0.001)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return readable_toy(tmp_path_factory.mktemp("served") / "toy")


def items(out: Path, model: str) -> dict[str, list[dict[str, Any]]]:
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((out / "items" / model).iterdir())
    }


def compare(out: Path, *, tasks: int) -> None:
    """The served model's answers are the local model's, item by item."""
    local, served = items(out, "local"), items(out, "served")
    assert len(served) == tasks
    for name, lines in served.items():
        for ours, theirs in zip(lines, local[name], strict=True):
            for key in ("nll", "twin_nll"):  # other batches, so other sums
                assert ours.pop(key) == pytest.approx(theirs.pop(key), rel=1e-4)
            assert ours == theirs


@pytest.mark.parametrize("abilities", [VLLM, SGLANG, LLAMA_CPP_PYTHON])
def test_each_server_that_scores_gives_the_local_models_verdicts(
    toy: Path, tmp_path: Path, abilities: Abilities
) -> None:
    with ToyServer(toy, abilities).running() as server:
        result = evaluate(
            [f"local={toy}"], tmp_path / "out", endpoint=server.url,
            endpoint_model="served=org/toy", **RUN,
        )  # fmt: skip
    compare(tmp_path / "out", tasks=3)
    assert result["cells"]["served"].keys() == result["cells"]["local"].keys()
