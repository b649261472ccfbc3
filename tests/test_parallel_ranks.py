"""Two and four gloo processes against one: attention, whole models, and what goes wrong."""

from __future__ import annotations

from typing import Any

import parallel_ranks
import pytest

BOUNDS = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.05}


@pytest.fixture(scope="module")
def two() -> dict[str, list[Any]]:
    return parallel_ranks.run("attention,model,mesh,lost,hung", 2)


@pytest.fixture(scope="module")
def four() -> dict[str, list[Any]]:
    return parallel_ranks.run("attention,model", 4)


def cases(which: str) -> list[Any]:
    listed = {"attention": parallel_ranks.attention_cases, "model": parallel_ranks.model_cases}
    return [
        pytest.param(
            name, case, id=", ".join(case), marks=pytest.mark.xdist_group(f"parallel {name}")
        )
        for name, world in (("two", 2), ("four", 4))
        for case in listed[which](world)
    ]


@pytest.mark.parametrize(("world", "case"), cases("attention"))
def test_attention_is_the_definition(
    world: str, case: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    for errors in request.getfixturevalue(world)["attention"]:
        found = errors[", ".join(case)]
        assert set(found) == {"out", "dq", "dk", "dv"}
        assert max(found.values()) < BOUNDS[case[-1]], found


@pytest.mark.parametrize(
    "world",
    [
        pytest.param("two", marks=pytest.mark.xdist_group("parallel two")),
        pytest.param("four", marks=pytest.mark.xdist_group("parallel four")),
    ],
)
def test_tokens_in_another_order_are_noticed(world: str, request: pytest.FixtureRequest) -> None:
    """The comparison above can fail: contiguous shards where zigzag ones are meant."""
    for errors in request.getfixturevalue(world)["attention"]:
        assert min(errors["wrong order"].values()) > 0.1


@pytest.mark.parametrize(("world", "case"), cases("model"))
def test_model_is_one_process(
    world: str, case: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    """Loss over all valid tokens, gradients (relative), and logits joined again, against
    transformers' own attention with explicit masks."""
    for found in request.getfixturevalue(world)["model"]:
        errors = found[", ".join(case)]
        single = case[-1] == "float32"
        assert errors["loss"] < (1e-6 if single else 1e-10)
        assert errors["gradients"] < (2e-6 if single else 1e-10)
        assert errors["joined"] < (1e-5 if single else 1e-10)


@pytest.mark.xdist_group("parallel two")
def test_mesh_sums_over_all_ranks_and_says_what_it_is(two: dict[str, list[Any]]) -> None:
    for found in two["mesh"]:
        assert found["tokens"] == 2 + 4
        assert found["fsdp"] == [2]
        assert found["default"] == "2 processes on cpu: shard 2"
        assert "context 2; attention kernel torch-cpu; gather (" in found["described"]


@pytest.mark.xdist_group("parallel two")
def test_what_cannot_be_cut_is_one_sentence(two: dict[str, list[Any]]) -> None:
    for found in two["mesh"]:
        assert "needs 4 processes (context 4) but there are 2" in found["too many"]
        assert "ulysses 2 does not divide the model's 3 key-value heads" in found["heads"]
        for other in ("text", "length", "positions"):
            assert "hold different batches" in found[f"other {other}"]


@pytest.mark.xdist_group("parallel two")
@pytest.mark.parametrize("how", ["lost", "hung"])
def test_a_rank_that_is_gone_is_one_sentence(two: dict[str, list[Any]], how: str) -> None:
    sentence, seconds = two[how][0]
    assert sentence.startswith("Process 0 of 2 lost another one")
    assert "\n" not in sentence
    assert seconds < 30  # the other rank's end, or the stated second: never torch's half hour
