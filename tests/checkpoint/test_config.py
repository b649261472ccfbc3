"""Configs that transformers is not given."""

from __future__ import annotations

import models
import pytest

from regraft.checkpoint.config import load_config
from regraft.errors import CheckpointError


@pytest.mark.parametrize("value", [float("-inf"), [1.0, float("nan")], {"x": float("inf")}])
def test_numbers_that_no_json_holds_are_refused(value):
    with pytest.raises(CheckpointError, match=r"config\.json of org/x gives .* not finite"):
        load_config({**models.LLAMA, "output_attentions": value}, "org/x")
