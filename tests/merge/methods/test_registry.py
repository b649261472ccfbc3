"""Declaration of methods: parameters from signatures, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from method_inputs import SETTINGS, relatives

from regraft.errors import InputError
from regraft.merge.methods import REQUIRED, get, merge_tensors, names


def test_the_settings_cover_every_method() -> None:
    assert set(SETTINGS) == set(names())


def test_a_method_reads_its_parameters_from_its_signature() -> None:
    parameters = get("breadcrumbs").parameters
    assert list(parameters) == [
        "weight", "density", "gamma", "lambda", "normalize", "rescale", "int8_mask",
    ]  # fmt: skip
    assert parameters["weight"].required
    assert parameters["weight"].default is REQUIRED
    assert parameters["gamma"].per_input
    assert parameters["gamma"].default == 0.01
    assert parameters["gamma"].bounds == (0.0, 1.0)
    assert not parameters["lambda"].per_input
    assert parameters["normalize"].kind is bool
    assert get("passthrough").parameters["scale"].optional
    assert get("ties").parameters["variant"].choices == ("mergekit", "paper", "peft")


@pytest.mark.parametrize("name", SETTINGS)
def test_every_method_is_documented(name: str) -> None:
    assert len(get(name).doc) > 30
    assert get(name).paper
    assert get(name).stochastic == name.startswith(("dare", "della"))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("ties", {"wieght": 1.0}, "did you mean weight"),
        ("ties", {}, "needs the parameter weight"),
        ("ties", {"weight": [1, 2, 3]}, "3 values for 2 inputs"),
        ("ties", {"weight": "much"}, "must be a number"),
        ("ties", {"weight": True}, "must be a number"),
        ("ties", {"weight": float("nan")}, "must be a number"),
        ("ties", {"weight": 1, "density": 1.5}, "between 0 and 1"),
        ("ties", {"weight": 1, "normalize": 1}, "true or false"),
        ("ties", {"weight": 1, "variant": "yadav"}, "one of mergekit, paper, peft"),
        ("ties", {"weight": 0.5, "variant": "paper"}, "has no weights"),
        ("linear", {"weight": [1, -1]}, "sum to zero"),
        ("multislerp", {"weight": [0.3, -0.3]}, "sum to zero"),
        ("della", {"weight": 1, "density": 0.9}, "inside"),
        ("consensus_ta", {"min_tasks": 1.5}, "whole number"),
        ("karcher", {"max_iter": 0}, "at least 1"),
    ],
)
def test_impossible_parameters_are_refused(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        get(name).bind(params, 2)


def test_wrong_numbers_of_inputs_and_unknown_names_are_refused() -> None:
    base, (a, b) = relatives((3, 3))
    for name, inputs, start in (("slerp", [a, b], base), ("model_stock", [a], base)):
        with pytest.raises(InputError, match="besides the base, not"):
            merge_tensors(name, inputs, start, SETTINGS[name])
    with pytest.raises(InputError, match="needs a base model"):
        merge_tensors("ties", [a, b], None, SETTINGS["ties"])
    with pytest.raises(InputError, match="did you mean ties"):
        get("tise")
