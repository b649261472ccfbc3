"""The model card of a trained adapter."""

from __future__ import annotations

import pytest
from train_recipes import LORA, write_recipe

from regraft.train.job import train_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_card_names_programs_that_leave_trained_norms_out(trained_model, data_folder, tmp_path):
    train_model(
        write_recipe(tmp_path, data_folder, LORA, trained_model), tmp_path / "out", device="cpu"
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| PEFT | the factors, without the 5 dense differences |" in card
    assert "--max-lora-rank 8, without the 5 dense differences |" in card
    assert "| regraft apply | yes |" in card
