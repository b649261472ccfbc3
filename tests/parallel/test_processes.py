"""Two and four gloo processes against one: attention, whole models, and what goes wrong."""

from __future__ import annotations

from typing import Any

import pytest
from parallel_attention import attention_cases
from parallel_models import model_cases
from parallel_ranks import Jobs
from warm import WarmProcess

ATTENTION = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.05}
MODEL = {
    "float64": {"loss": 1e-10, "gradients": 1e-10, "joined": 1e-10},
    "float32": {"loss": 1e-6, "gradients": 2e-6, "joined": 1e-5},
}


@pytest.fixture(scope="module")
def jobs(warm: WarmProcess) -> Jobs:
    return Jobs(warm)


@pytest.mark.parametrize("world", [2, 4])
def test_many_processes_are_one(jobs: Jobs, world: int) -> None:
    """Attention against the definition; loss, gradients (relative) and joined logits of whole
    models against transformers' own attention with explicit masks in one process."""
    result = jobs.run("attention,model", world)
    wrong = []
    for rank, errors in enumerate(result["attention"]):
        for case in attention_cases(world):
            got = errors[", ".join(case)]
            assert set(got) == {"out", "dq", "dk", "dv"}
            wrong += [(rank, case, got)] * (not max(got.values()) < ATTENTION[case[-1]])
        # The comparison can fail: contiguous shards where zigzag ones are meant.
        assert min(errors["wrong order"].values()) > 0.1
    for rank, errors in enumerate(result["model"]):
        for case in model_cases(world):
            got, bounds = errors[", ".join(case)], MODEL[case[-1]]
            wrong += [(rank, case, got)] * (not all(got[k] < bounds[k] for k in bounds))
    assert not wrong


def test_what_goes_wrong_on_two_processes_is_one_sentence(jobs: Jobs) -> None:
    result = jobs.run("mesh,lost,hung,wait,sums,count_lost", 2)
    assert min(result["wait"]) > 1
    for rank in result["mesh"]:
        _check_mesh(rank)
    assert result["sums"] == [[2.0**41 + 1, 1.0]] * 2
    for how in ("lost", "hung", "count_lost"):
        sentence, seconds = result[how][0]
        assert sentence.startswith("Process 0 of 2 lost another one")
        assert "\n" not in sentence
        assert seconds < 30  # the other's end, or the stated second: never torch's half hour


def test_a_model_that_one_process_read_is_whole_in_all(jobs: Jobs) -> None:
    assert jobs.run("constants", 2)["constants"] == [[5.0, 3.0]] * 2


def _check_mesh(result: dict[str, Any]) -> None:
    assert result["tokens"] == 2 + 4
    assert result["fsdp"] == [2]
    assert result["default"] == "2 processes on cpu: shard 2"
    assert "context 2; attention kernel torch-cpu; gather (" in result["described"]
    assert "needs 4 processes (context 4) but there are 2" in result["too many"]
    assert "ulysses 2 does not divide the model's 3 key-value heads" in result["heads"]
    for other in ("text", "length", "positions"):
        assert "hold different batches" in result[f"other {other}"]


def test_parts_of_an_evaluation_come_back_in_order_and_a_lost_process_ends_the_others(
    jobs: Jobs,
) -> None:
    result = jobs.run("map,map_nan,map_lost,map_hung", 2)
    for mapped in result["map"]:
        assert mapped["squares"] == [0, 1, 4, 9, 16]
        assert mapped["none"] == []
        assert mapped["error"] == "part 1"  # the first of those that fail, in both processes
    for error in result["map_nan"]:
        assert "broken computes NaN or infinity" in error
    for name, longest in (("map_lost", 10), ("map_hung", 10)):
        message, seconds = result[name][0]
        assert "Process 0 of 2 lost another one" in message
        assert seconds < longest
