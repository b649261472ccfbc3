"""Writing checkpoints: other libraries read what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import contents
from safetensors import safe_open
from safetensors.torch import load_file
from written_files import planned, tensors, three_shards, write_all

from regraft.checkpoint.read.files import INDEX
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.shard_plan import PlannedTensor, plan_shards, write_safetensors
from regraft.checkpoint.write.sink import CheckpointWriter
from regraft.checkpoint.write.staging import Staging


def test_written_shards_load_in_safetensors_with_equal_values(tmp_path: Path) -> None:
    write_all(tmp_path / "out")
    plan = three_shards()
    assert list(plan) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    loaded = {}
    for shard in plan:
        loaded.update(load_file(tmp_path / "out" / shard))
        with safe_open(tmp_path / "out" / shard, "pt") as file:
            assert file.metadata() == {"format": "pt"}
    assert loaded.keys() == tensors().keys()
    for name, value in tensors().items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors().values())
    assert index["weight_map"] == {t.name: shard for shard, held in plan.items() for t in held}
    Checkpoint.open(tmp_path / "out")


def test_transformers_loads_what_is_copied(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "in")
    with (
        Checkpoint.open(tmp_path / "in") as source,
        Staging(tmp_path / "out", job="job") as staging,
    ):
        expected = [PlannedTensor(i.name, i.shape, i.dtype) for i in source.tensors.values()]
        writer = CheckpointWriter(
            staging, plan_shards(expected, like=source, max_shard_bytes=9000), verify=True
        )
        for name in source.tensors:
            writer.copy(name, source)
        path = source.file("config.json")
        assert path is not None
        writer.add_file("config.json", path)
        writer.finish()
        staging.publish()
        copied = Checkpoint.open(tmp_path / "out")
        assert len(copied.shards) > 1
        assert copied.fingerprint(full=True) == source.fingerprint(full=True)
    one, other = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("in", "out")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_row_blocks_and_whole_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    write_all(tmp_path / "whole")
    with Staging(tmp_path / "blocks", job="job") as staging:
        writer = CheckpointWriter(staging, three_shards())
        for name, value in reversed(list(tensors().items())):
            writer.write(name, value.split(7) if value.dim() else value)
        writer.add_file("config.json", b"{}")
        writer.finish()
        staging.publish()
    assert contents(tmp_path / "blocks") == contents(tmp_path / "whole")


def test_views_that_are_not_contiguous_are_written_right(tmp_path: Path) -> None:
    value = torch.arange(12.0).view(3, 4).T
    write_safetensors(tmp_path / "f", [("t", value)], planned({"t": value}))
    assert torch.equal(load_file(tmp_path / "f")["t"], value)


@pytest.mark.parametrize(
    "blocks",
    [
        torch.ones(60, 32),  # dtype
        torch.ones(32, 60, dtype=torch.bfloat16),  # shape
        [torch.ones(30, 32, dtype=torch.bfloat16)],  # too few rows
        [torch.ones(40, 32, dtype=torch.bfloat16)] * 2,  # too many
        [],
    ],
)
def test_blocks_that_do_not_fit_the_plan_are_refused(
    tmp_path: Path, blocks: torch.Tensor | list[torch.Tensor]
) -> None:
    with Staging(tmp_path / "out", job="job") as staging:
        writer = CheckpointWriter(staging, three_shards())
        with pytest.raises(ValueError, match="'embed'"):
            writer.write("embed", blocks)
        assert not writer.finished("embed")
        with pytest.raises(ValueError, match="not written"):
            writer.finish()


def test_add_file_stays_in_the_folder(tmp_path: Path) -> None:
    with Staging(tmp_path / "out", job="job") as staging:
        writer = CheckpointWriter(staging, three_shards())
        with pytest.raises(ValueError, match="outside"):
            writer.add_file("../escaped", b"x")
        writer.add_file("code/modeling.py", b"x")
        assert (staging.folder / "code" / "modeling.py").read_bytes() == b"x"
