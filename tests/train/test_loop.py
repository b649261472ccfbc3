"""The stages of a run: one that validation stops and repeats, positions that skip, bfloat16."""

from __future__ import annotations

import json
import math

import pytest
from train_recipes import LORA, RECIPE, read_losses, write_recipe

from regraft.records import to_json
from regraft.train.job import train_model
from regraft.train.output import log as metrics

pytestmark = pytest.mark.usefixtures("one_thread")


def test_positions_that_skip_train_short_rows_for_a_long_context(data_folder, tmp_path):
    recipe = write_recipe(
        tmp_path, data_folder,
        RECIPE + "positions: {{kind: multi_chunk, window: 64, least: 8, unskipped: 0}}\n",
    )  # fmt: skip
    record = train_model(recipe, tmp_path / "out", device="cpu")
    assert record.context.stages[-1].max_position_embeddings == 256
    assert record.tokens == 5 * 4 * 64 + 5 * 2 * 64


def test_bfloat16_arithmetic_follows_float32(trained_model, data_folder, tmp_path):
    losses = []
    for dtype in ("float32", "bfloat16"):
        recipe = write_recipe(
            tmp_path / dtype, data_folder, LORA + f"dtype: {dtype}\n", trained_model
        )
        train_model(recipe, tmp_path / dtype / "out", device="cpu")
        losses.append(
            [line["loss"] for line in metrics.read_lines(tmp_path / dtype / "out/metrics.jsonl")]
        )
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


UNSTABLE = (  # one stage at a rate that is too high, so validation stops it at every theta
    RECIPE.replace(RECIPE[RECIPE.index("  - {{length: 256") : RECIPE.index("data:")], "")
    .replace("steps: 5, batch: 4, rate: 3e-3", "steps: 40, batch: 4, rate: 0.3, {theta}")
    .replace("watch: {{every: 3", "watch: {{stop: true, tolerance: 0.05, every: 2")
    .replace("save_every: 3", "save_every: 4")
)


def test_a_stage_that_is_stopped_begins_again_with_the_next_theta(data_folder, tmp_path, children):
    plain = write_recipe(tmp_path / "alone", data_folder, UNSTABLE.replace("{theta}", "theta: 300"))
    with pytest.warns(UserWarning, match="Stage 1 ends at step"):
        alone = train_model(plain, tmp_path / "alone" / "out", device="cpu")
    recipe = write_recipe(
        tmp_path, data_folder, UNSTABLE.replace("{theta}", "theta: 100, fallback: [300]")
    )
    line = ["train", recipe, "-o", tmp_path / "out", "--device", "cpu", "--threads", "1", "-q"]
    uninterrupted = children.run(*line[:3], tmp_path / "uninterrupted", *line[4:])
    assert uninterrupted["code"] == 0, uninterrupted["err"]
    lines = metrics.read_lines(tmp_path / "uninterrupted" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    first, second = ([line for line in lines if line["attempt"] == number] for number in (1, 2))
    assert ({line["theta"] for line in first}, {line["theta"] for line in second}) == ({100}, {300})
    expected = metrics.read_lines(tmp_path / "alone" / "out" / "metrics.jsonl")
    for key in ("loss", "gradient", "rate", "valid"):
        assert [line[key] for line in second] == [line[key] for line in expected]
    weights = (tmp_path / "alone" / "out" / "model.safetensors").read_bytes()
    assert (tmp_path / "uninterrupted" / "model.safetensors").read_bytes() == weights
    record = json.loads((tmp_path / "uninterrupted" / "train.json").read_text())
    (lost,) = record["abandoned"]
    assert (lost["stage"], lost["theta"], lost["steps"]) == (1, 100, len(first))
    assert "NLL at" in lost["reason"]
    for key in ("steps", "stage_steps", "tokens", "stopped", "context"):
        assert record[key] == to_json(alone)[key]
    assert len(second) < 40
    assert all(math.isfinite(line["loss"]) for line in lines)
    card = (tmp_path / "uninterrupted" / "README.md").read_text()
    assert f"stage 1, after {len(first)} steps at theta 100: NLL" in card

    for share in (0.45, 0.3):
        assert (
            children.run(*line, "--resume", die=int(share * uninterrupted["calls"]))["code"] == -9
        )
    last = children.run(*line, "--resume")
    assert last["code"] == 0, last["err"]
    assert read_losses(tmp_path / "out") == read_losses(tmp_path / "uninterrupted")
    validations = [
        metrics.read_lines(tmp_path / name / "watch.jsonl") for name in ("out", "uninterrupted")
    ]
    assert validations[0] == validations[1]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
