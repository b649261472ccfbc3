"""Reading the tensors of a checkpoint, its samples and its fingerprint."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import CONFIG, entry, model, raw, refusal, tensors, two_shards
from safetensors.torch import load_file, save_file

from regraft.checkpoint.read.files import INDEX
from regraft.checkpoint.read.header import DTYPES
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError


@pytest.mark.parametrize("code", sorted(DTYPES))
def test_every_dtype_reads_as_the_safetensors_library_reads_it(tmp_path: Path, code: str) -> None:
    dtype = DTYPES[code]
    bits = torch.arange(32 * dtype.itemsize, dtype=torch.uint8)
    if dtype == torch.bool:
        bits = bits % 2
    stored = bits.view(dtype).reshape(4, 8)
    try:
        save_file({"t": stored, "other": torch.ones(3)}, tmp_path / "model.safetensors")
    except KeyError:
        pytest.skip(f"this safetensors library does not write {code}")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    expected = load_file(tmp_path / "model.safetensors")["t"]
    with Checkpoint.open(tmp_path) as checkpoint:
        got = checkpoint.tensor("t")
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8))
        rows = checkpoint.rows("t", 1, 3)
        assert torch.equal(rows.view(torch.uint8), expected[1:3].view(torch.uint8))


def test_scalar_and_empty_tensors_read(tmp_path: Path) -> None:
    stored = {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 4), "t": torch.ones(2)}
    with Checkpoint.open(model(tmp_path, {"model.safetensors": stored})) as checkpoint:
        for name, value in stored.items():
            assert torch.equal(checkpoint.tensor(name), value)
            assert checkpoint.sample(name).numel() == value.numel()


def test_misaligned_tensor_reads(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.0, 3.25])
    data = b"\x01" + values.numpy().tobytes()
    raw(tmp_path, {"b": entry("BOOL", [1], 0, 1), "t": entry("F32", [3], 1, 13)}, data)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.tensor("t"), values)
        assert checkpoint.tensor("t").data_ptr() % 4 == 0
        assert torch.equal(checkpoint.rows("t", 1, 3), values[1:])
        assert torch.equal(checkpoint.sample("t"), values)


def test_writing_to_a_tensor_never_changes_the_file_and_never_warns(tmp_path: Path) -> None:
    model(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Checkpoint.open(tmp_path) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.tensor(name).zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_closed_checkpoint_reads_again_and_its_tensors_stay(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(model(tmp_path))
    tensor = checkpoint.tensor("lm_head.weight")
    checkpoint.close()
    assert torch.equal(tensor, tensors()["lm_head.weight"])
    assert torch.equal(checkpoint.tensor("lm_head.weight"), tensor)


def test_a_changed_tensor_is_nobody_elses(tmp_path: Path) -> None:
    with Checkpoint.open(model(tmp_path)) as checkpoint:
        checkpoint.tensor("lm_head.weight").zero_()
        assert torch.equal(checkpoint.tensor("lm_head.weight"), tensors()["lm_head.weight"])


def test_parts_of_a_tensor_are_read_as_the_whole_has_them(tmp_path: Path) -> None:
    with Checkpoint.open(model(tmp_path)) as checkpoint:
        whole = tensors()["lm_head.weight"]
        assert torch.equal(checkpoint.rows("lm_head.weight", 3, 9), whole[3:9])
        assert torch.equal(checkpoint.rows("lm_head.weight", 3, 60, 7), whole[3:60:7])
        assert torch.equal(checkpoint.rows("lm_head.weight", 5, 5), whole[5:5])
        assert torch.equal(checkpoint.elements("lm_head.weight", 40, 99), whole.flatten()[40:99])
        rest = checkpoint.elements("lm_head.weight", 3000, 9999)
        assert torch.equal(rest, whole.flatten()[3000:])


def test_a_file_truncated_while_it_is_read_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(model(tmp_path))
    checkpoint.tensor("model.norm.weight")
    os.truncate(tmp_path / "model.safetensors", 5000)
    reads: list[Callable[[], Any]] = [
        lambda: checkpoint.tensor("lm_head.weight"),
        lambda: checkpoint.rows("lm_head.weight", 60, 64),
        lambda: checkpoint.sample("lm_head.weight"),
        lambda: checkpoint.is_finite("lm_head.weight"),
        lambda: list(checkpoint.chunks("lm_head.weight")),
    ]
    for read in reads:
        with pytest.raises(CheckpointError, match=r"model\.safetensors became shorter"):
            read()


def test_special_files_are_refused_at_once(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        folder = model(tmp_path / name)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert f"{name} is a FIFO" in refusal(folder)


def test_tensors_come_in_file_order(tmp_path: Path) -> None:
    with Checkpoint.open(model(tmp_path, two_shards())) as checkpoint:
        assert list(checkpoint.shards) == sorted(two_shards())
        assert list(checkpoint.tensors) == [n for held in checkpoint.shards.values() for n in held]
        for held in checkpoint.shards.values():
            offsets = [checkpoint.tensors[name].offset for name in held]
            assert offsets == sorted(offsets)
        assert checkpoint.total_bytes == sum(t.nbytes for t in tensors().values())
        assert checkpoint.metadata == {"format": "pt"}


def test_shards_without_an_index_are_all_read_and_consolidated_ones_ignored(tmp_path: Path) -> None:
    model(tmp_path, two_shards())
    (tmp_path / INDEX).unlink()
    save_file({"other": torch.ones(2)}, tmp_path / "consolidated.00.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == set(tensors())


def test_other_files_are_what_a_copy_needs(tmp_path: Path) -> None:
    model(tmp_path, two_shards())
    needed = ["LICENSE", "chat_template.jinja", "code/notes.txt", "tokenizer.json"]
    rest = [
        "README.md", ".gitattributes", ".cache/x", "original/params.json", "onnx/config.json",
        "pytorch_model.bin", "training_args.bin", "model.gguf", "pytorch_model.bin.index.json",
        "modeling.py", "code/x.py", "lib.so", "data.pkl", "run.sh",
        "train.json", "curves.png", "tensorboard/events", "runs/1/events", "regraft.json",
    ]  # fmt: skip
    for name in needed + rest:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("x")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.other_files() == needed
        assert checkpoint.file("tokenizer.json") == tmp_path / "tokenizer.json"
        assert checkpoint.file("absent.json") is None
        assert checkpoint.file("../config.json") is None


@pytest.mark.parametrize(
    ("flag", "head", "tied"),
    [
        (True, None, True),
        (True, "same", True),
        (True, "other", False),
        (False, "same", False),
        (False, None, False),
        (None, None, False),  # Llama's default
    ],
)
def test_tied_follows_config_and_stored_head(
    tmp_path: Path, flag: bool | None, head: str | None, tied: bool
) -> None:
    held = tensors()
    if head is None:
        del held["lm_head.weight"]
    elif head == "same":
        held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    model(tmp_path, {"model.safetensors": held})
    config = {"model_type": "llama"} if flag is None else {"tie_word_embeddings": flag}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Checkpoint.open(tmp_path).tied is tied


def test_tied_looks_into_text_config_and_the_default_of_the_model_type(tmp_path: Path) -> None:
    held = tensors()
    del held["lm_head.weight"]
    model(tmp_path, {"model.safetensors": held})
    nested = {"model_type": "llava", "text_config": {"tie_word_embeddings": True}}
    for config, tied in ((nested, True), ({"model_type": "gemma"}, True), ({}, False)):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert Checkpoint.open(tmp_path).tied is tied


def test_fingerprint_does_not_depend_on_sharding(tmp_path: Path) -> None:
    one = Checkpoint.open(model(tmp_path / "one"))
    two = Checkpoint.open(model(tmp_path / "two", two_shards()))
    for full in (False, True):
        assert one.fingerprint(full=full) == two.fingerprint(full=full)
    assert one.fingerprint().startswith("sampled:")
    assert one.fingerprint(full=True).startswith("full:")


def test_fingerprint_tells_names_shapes_and_dtypes_apart(tmp_path: Path) -> None:
    zeros = [
        {"a": torch.zeros(4, 2)},
        {"b": torch.zeros(4, 2)},
        {"a": torch.zeros(2, 4)},
        {"a": torch.zeros(4, 2, dtype=torch.int32)},
    ]
    for full in (False, True):
        seen = {
            Checkpoint.open(
                model(tmp_path / f"{i}", {"model.safetensors": held})
            ).fingerprint(full=full)
            for i, held in enumerate(zeros)
        }  # fmt: skip
        assert len(seen) == len(zeros)


def test_sampled_fingerprint_sees_a_sampled_value_and_full_sees_any(tmp_path: Path) -> None:
    plain = torch.arange(100_000, dtype=torch.float32)
    base = Checkpoint.open(model(tmp_path / "base", {"model.safetensors": {"t": plain}}))
    sampled = base.sample("t").long()
    unsampled = next(i for i in range(100_000) if i not in set(sampled.tolist()))
    for where, seen in ((int(sampled[70]), True), (unsampled, False)):
        changed = plain.clone()
        changed[where] = -1
        other = Checkpoint.open(
            model(tmp_path / f"{where}", {"model.safetensors": {"t": changed}})
        )  # fmt: skip
        assert (other.fingerprint() != base.fingerprint()) is seen
        assert other.fingerprint(full=True) != base.fingerprint(full=True)


def test_sample_is_sixteen_blocks_spread_over_the_tensor(tmp_path: Path) -> None:
    held = {"t": torch.arange(50_000), "flat": torch.arange(50_000).view(500, 100)}
    held["small"] = torch.arange(1024)
    checkpoint = Checkpoint.open(model(tmp_path, {"model.safetensors": held}))
    blocks = checkpoint.sample("t").view(16, 64)
    assert torch.equal(blocks - blocks[:, :1], torch.arange(64).expand(16, 64))
    assert torch.equal(blocks[:, 0] // 3125, torch.arange(16))
    assert torch.equal(blocks[:, 63] // 3125, torch.arange(16))
    assert torch.equal(checkpoint.sample("t"), checkpoint.sample("flat"))
    assert torch.equal(checkpoint.sample("small"), held["small"])


def test_tensor_stored_twice_is_refused(tmp_path: Path) -> None:
    model(tmp_path, two_shards())
    (tmp_path / INDEX).unlink()
    save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "model-extra.safetensors")
    assert "'model.norm.weight' is stored twice" in refusal(tmp_path)


def test_permission_error_becomes_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(tmp_path)
    opened = os.open

    def denied(path: Any, flags: int, *rest: int) -> int:
        if str(path).endswith(".safetensors"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", denied)
    assert "model.safetensors cannot be read (Permission denied)" in refusal(tmp_path)


def test_unknown_tensor_and_bad_rows_are_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(model(tmp_path))
    with pytest.raises(CheckpointError, match="no tensor 'nothing'"):
        checkpoint.tensor("nothing")
    for start, stop in ((-1, 2), (3, 2), (0, 65)):
        with pytest.raises(IndexError):
            checkpoint.rows("lm_head.weight", start, stop)
