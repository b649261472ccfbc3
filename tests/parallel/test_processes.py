"""Two and four gloo processes against one: attention, whole models, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from parallel_ranks import Jobs, attention_cases, model_cases

ATTENTION = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.05}
MODEL = {
    "float64": {"loss": 1e-10, "gradients": 1e-10, "joined": 1e-10},
    "float32": {"loss": 1e-6, "gradients": 2e-6, "joined": 1e-5},
}


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    with Jobs() as started:
        yield started


@pytest.mark.parametrize("world", [2, 4])
def test_many_processes_are_one(jobs: Jobs, world: int) -> None:
    """Attention against the definition; loss, gradients (relative) and joined logits of whole
    models against transformers' own attention with explicit masks in one process."""
    found = jobs.run("attention,model", world)
    wrong = []
    for rank, errors in enumerate(found["attention"]):
        for case in attention_cases(world):
            got = errors[", ".join(case)]
            assert set(got) == {"out", "dq", "dk", "dv"}
            wrong += [(rank, case, got)] * (not max(got.values()) < ATTENTION[case[-1]])
        # The comparison can fail: contiguous shards where zigzag ones are meant.
        assert min(errors["wrong order"].values()) > 0.1
    for rank, errors in enumerate(found["model"]):
        for case in model_cases(world):
            got, bounds = errors[", ".join(case)], MODEL[case[-1]]
            wrong += [(rank, case, got)] * (not all(got[k] < bounds[k] for k in bounds))
    assert not wrong


def test_what_goes_wrong_on_two_processes_is_one_sentence(jobs: Jobs) -> None:
    found = jobs.run("mesh,lost,hung,patience,sums,count_lost", 2)
    assert min(found["patience"]) > 1
    for rank in found["mesh"]:
        _check_mesh(rank)
    assert found["sums"] == [[2.0**41 + 1, 1.0]] * 2
    for how in ("lost", "hung", "count_lost"):
        sentence, seconds = found[how][0]
        assert sentence.startswith("Process 0 of 2 lost another one")
        assert "\n" not in sentence
        assert seconds < 30  # the other's end, or the stated second: never torch's half hour


def test_a_model_that_one_process_read_is_whole_in_all(jobs: Jobs) -> None:
    assert jobs.run("constants", 2)["constants"] == [[5.0, 3.0]] * 2


def _check_mesh(found: dict[str, Any]) -> None:
    assert found["tokens"] == 2 + 4
    assert found["fsdp"] == [2]
    assert found["default"] == "2 processes on cpu: shard 2"
    assert "context 2; attention kernel torch-cpu; gather (" in found["described"]
    assert "needs 4 processes (context 4) but there are 2" in found["too many"]
    assert "ulysses 2 does not divide the model's 3 key-value heads" in found["heads"]
    for other in ("text", "length", "positions"):
        assert "hold different batches" in found[f"other {other}"]


def test_parts_of_an_evaluation_come_back_in_order_and_a_lost_process_ends_the_others(
    jobs: Jobs,
) -> None:
    found = jobs.run("spread,spread_lost,spread_hung", 2)
    for result in found["spread"]:
        assert result["squares"] == [0, 1, 4, 9, 16]
        assert result["none"] == []
        assert result["error"] == "part 1"  # the first of those that fail, in both processes
    for name, longest in (("spread_lost", 10), ("spread_hung", 10)):
        message, seconds = found[name][0]
        assert "Process 0 of 2 lost another one" in message
        assert seconds < longest
