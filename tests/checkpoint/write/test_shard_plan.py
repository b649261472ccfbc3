"""The plan of shards, and single safetensors files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from written_files import planned

from regraft.checkpoint.read.files import INDEX
from regraft.checkpoint.read.header import DTYPES
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.shard_plan import PlannedTensor, plan_shards, write_safetensors


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(
        st.tuples(
            st.sampled_from([d for c, d in sorted(DTYPES.items()) if c != "F8_E8M0"]),
            st.lists(st.integers(0, 5), max_size=3),
        ),
        min_size=1,
        max_size=6,
    ),
    order=st.randoms(use_true_random=False),
)
def test_any_mixture_of_tensors_is_aligned_and_reads_back(
    tmp_path: Path, shapes: list[tuple[torch.dtype, list[int]]], order: object
) -> None:
    values = {f"t{i}": torch.ones(shape).to(dtype) for i, (dtype, shape) in enumerate(shapes)}
    items = list(values.items())
    order.shuffle(items)
    write_safetensors(tmp_path / "model.safetensors", iter(items), planned(values), {"k": "v"})
    (tmp_path / "config.json").write_text("{}")
    loaded = load_file(tmp_path / "model.safetensors")
    read = Checkpoint.open(tmp_path)
    assert read.metadata == {"k": "v", "format": "pt"}
    for name, value in values.items():
        info = read.tensors[name]
        assert info.offset % info.dtype.itemsize == 0
        for got in (read.tensor(name), loaded[name]):
            assert (got.shape, got.dtype) == (value.shape, value.dtype)
            assert torch.equal(
                got.reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)
            )


def test_write_safetensors_refuses_what_was_not_planned_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    plan = planned({"a": torch.ones(2), "b": torch.ones(3)})
    with pytest.raises(ValueError, match="not given: \\['b'\\]"):
        write_safetensors(path, [("a", torch.ones(2))], plan)
    with pytest.raises(ValueError, match="planned were"):
        write_safetensors(path, [("a", torch.ones(3))], plan)
    assert list(tmp_path.iterdir()) == []


def test_plan_follows_the_source_shards(tmp_path: Path) -> None:
    a, b = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    for shard, name in ((a, "x"), (b, "y")):
        save_file({name: torch.ones(2)}, tmp_path / shard)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": a, "y": b}}))
    (tmp_path / "config.json").write_text("{}")
    source = Checkpoint.open(tmp_path)
    x, y, new = planned({"x": torch.ones(2), "y": torch.ones(2), "new": torch.ones(2)})
    assert plan_shards([x, new, y], like=source, max_shard_bytes=None) == {a: [x], b: [new, y]}
    # A shard that would be empty does not exist, so the names count anew.
    assert plan_shards([x], like=source, max_shard_bytes=None) == {"model.safetensors": [x]}
    assert plan_shards([x, y], like=source, max_shard_bytes=99) == {"model.safetensors": [x, y]}


def test_plan_cuts_at_the_given_size() -> None:
    plan = [PlannedTensor(f"t{i}", (size,), torch.uint8) for i, size in enumerate([5, 5, 1, 20, 3])]
    shards = plan_shards(plan, like=None, max_shard_bytes=10)
    assert [[t.name for t in held] for held in shards.values()] == [
        ["t0", "t1"], ["t2"], ["t3"], ["t4"],
    ]  # fmt: skip
    assert next(iter(shards)) == "model-00001-of-00004.safetensors"
    assert list(plan_shards(plan, like=None, max_shard_bytes=None)) == ["model.safetensors"]
