"""Configs that transformers is not given."""

from __future__ import annotations

import models
import pytest
from transformers.utils import logging

from regraft.checkpoint.config import hide_bars, load_config, quiet
from regraft.errors import CheckpointError


@pytest.mark.parametrize("value", [float("-inf"), [1.0, float("nan")], {"x": float("inf")}])
def test_numbers_that_no_json_holds_are_refused(value):
    with pytest.raises(CheckpointError, match=r"config\.json of org/x gives .* not finite"):
        load_config({**models.LLAMA, "output_attentions": value}, "org/x")


@pytest.mark.parametrize("hide", [hide_bars, quiet])
@pytest.mark.parametrize("before", [True, False])
def test_bars_of_transformers_are_hidden_and_come_back(hide, before):
    was = logging.is_progress_bar_enabled()
    switch = {True: logging.enable_progress_bar, False: logging.disable_progress_bar}
    try:
        switch[before]()
        with hide():
            assert not logging.is_progress_bar_enabled()
        assert logging.is_progress_bar_enabled() == before
    finally:
        switch[was]()
