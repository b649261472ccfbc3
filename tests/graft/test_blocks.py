"""Blocks that are recipes of other commands: run by themselves, on many processes, and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluated import toy
from models import contents

from regraft.errors import InputError
from regraft.graft.blocks import refuse_many_processes
from regraft.graft.job import graft_model
from regraft.train.job import train_model

BLOCK = (
    "stages: [{length: 128, steps: 1}], data: {sources: [{name: a, synthetic: notes, words: 130, "
    "documents: 40}]}"
)


def test_a_job_under_torchrun_is_refused_with_what_to_run_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "r.yaml").write_text(
        f"base: base\nextend: {{{BLOCK}}}\ntargets: [{{name: a, train: {{{BLOCK}}}}}]\n"
        "recover: recover.yaml\n"
    )
    with pytest.raises(InputError) as caught:
        graft_model(tmp_path / "r.yaml", tmp_path / "out")
    message = str(caught.value)
    for words in (
        "runs in one process; start it without torchrun; to train in many",
        "then regraft graft with `extended: FOLDER` (a LoRA: `adapter: FOLDER`) instead of extend "
        "and `model: FOLDER` instead of a target's train;",
        "to recover in many, run regraft graft without recover",
    ):
        assert words in message
    assert "base: FOLDER" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [{"base": "a", "extended": "b"}, [], "text", None])
def test_a_recipe_that_trains_nothing_is_refused_in_a_few_words(value: object) -> None:
    expected = "regraft graft runs in one process; start it without torchrun."
    assert str(refuse_many_processes(value)) == expected


def test_a_job_goes_on_from_the_output_of_a_block_as_from_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toy(Path("base"), max_position_embeddings=64)
    Path("extend.yaml").write_text(f"{{model: base, {BLOCK}}}")
    train_model("extend.yaml", "extended", device="cpu")
    rest = "base: base\ntargets: {name: a, model: base}\nranks: [2]\n"
    Path("block.yaml").write_text(f"extend: {{{BLOCK}}}\n{rest}")
    Path("folder.yaml").write_text(f"extended: extended\n{rest}")
    for name in ("block", "folder"):
        graft_model(f"{name}.yaml", name, device="cpu", until="graft")
    block, folder = (contents(Path(name) / "grafts/a") for name in ("block", "folder"))
    assert block["model.safetensors"] == folder["model.safetensors"]
    assert block["config.json"] == folder["config.json"]
