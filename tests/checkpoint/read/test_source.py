"""Reading checkpoints: what a good one gives, and what is said of each bad one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import COMMIT, HubServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from regraft.checkpoint.read.files import INDEX
from regraft.checkpoint.read.header import DTYPES
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError

CONFIG = {"model_type": "llama", "tie_word_embeddings": False}


def model(folder: Path, shards: dict[str, dict[str, torch.Tensor]] | None = None) -> Path:
    """A model folder from shard file -> tensors, with an index if there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = {"model.safetensors": tensors()} if shards is None else shards
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for shard, held in shards.items():
        save_file(held, folder / shard, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: shard for shard, held in shards.items() for name in held}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "model.embed_tokens.weight": torch.randn(64, 48, generator=draw).bfloat16(),
        "model.layers.0.up.weight": torch.randn(40, 48, generator=draw).bfloat16(),
        "model.norm.weight": torch.randn(48, generator=draw).bfloat16(),
        "lm_head.weight": torch.randn(64, 48, generator=draw).bfloat16(),
    }


def two_shards(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    items = list(tensors(seed).items())
    return {
        "model-00001-of-00002.safetensors": dict(items[:2]),
        "model-00002-of-00002.safetensors": dict(items[2:]),
    }


def raw(folder: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A model folder whose model.safetensors has this header, valid or not."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + text + data)
    return folder


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(source: Path | str) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(source)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", '"'))
    return message


# What a good checkpoint gives


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


# Fingerprints and samples


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


# What is said of a bad one


def test_missing_path_and_file_and_empty_folder_are_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "a" / "b" / "c")
    for name in ("./absent", "../absent", "absent", "a/b/c", "a\0/b"):
        assert "does not exist" in refusal(name)
    assert "possible Hub id" in refusal("absent/a..b")
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "is empty" in refusal(tmp_path / "empty")


def test_missing_and_broken_config_are_named(tmp_path: Path) -> None:
    model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    assert "config.json is not valid JSON" in refusal(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    assert "config.json is not valid JSON" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "config.json is not a JSON object" in refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "no config.json" in refusal(tmp_path)


def test_adapter_is_not_taken_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"t": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    assert "is an adapter" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "is an adapter" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_refused_with_the_conversion(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"x")
    message = refusal(tmp_path)
    assert "pickled" in message
    assert "save_pretrained" in message


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "no safetensors weights" in refusal(tmp_path)


def test_truncated_file_says_how_many_bytes_are_missing(tmp_path: Path) -> None:
    path = model(tmp_path) / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 100)
    message = refusal(tmp_path)
    assert f"promises {size} bytes and {size - 100} are there" in message
    assert "download it again" in message
    os.truncate(path, 50)
    assert "is truncated" in refusal(tmp_path)
    os.truncate(path, 5)
    assert "not a valid safetensors file" in refusal(tmp_path)
    os.truncate(path, 0)
    assert "is empty (0 bytes)" in refusal(tmp_path)


def test_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    model(tmp_path)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (tmp_path / "model.safetensors").write_bytes(pointer)
    assert "git lfs pull" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b"not json", b"", "not valid JSON"),
        (b"\xff\xfe{}", b"", "not valid JSON"),
        (b"[" * 5000, b"", "nested too deep"),
        (b"[]", b"", "not a JSON object"),
        ({"__metadata__": {"a": 1}, "t": entry("U8", [1], 0, 1)}, b"x", "__metadata__"),
        ({"t": {"dtype": "F32"}}, b"", "lacks dtype, shape"),
        ({"t": 3}, b"", "lacks dtype, shape"),
        ({"t": entry("F32", [-1], 0, 4)}, b"abcd", "whole numbers"),
        ({"t": entry("F32", [1.0], 0, 4)}, b"abcd", "whole numbers"),  # type: ignore[list-item]
        ({"t": entry("F32", [1], True, 4)}, b"abcd", "whole numbers"),
        ({"t": entry("F4", [8], 0, 4)}, b"abcd", "dtype F4"),
        ({"t": entry("F32", [2], 0, 4)}, b"abcd", "cannot fill 4 bytes"),
        ({"t": entry("F32", [1], 4, 0)}, b"abcd", "cannot fill -4 bytes"),
        ({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, b"abc", "overlap"),
        ({"a": entry("U8", [2], 0, 2), "b": entry("U8", [1], 3, 4)}, b"abcd", "hole"),
        ({"a": entry("U8", [1], 1, 2)}, b"ab", "hole"),
        ({"a": entry("U8", [1], 0, 1)}, b"abc", "2 bytes follow"),
        ({"a": entry("U8", [9], 0, 9)}, b"abc", "is truncated"),
        ({}, b"", "holds no tensors"),
    ],
)
def test_broken_headers_are_named(tmp_path: Path, header: Any, data: bytes, says: str) -> None:
    assert says in refusal(raw(tmp_path, header, data))


def test_absurd_header_length_is_named(tmp_path: Path) -> None:
    raw(tmp_path, {}, length=2**63)
    assert "does not begin with the length" in refusal(tmp_path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.integers(0, 400), put=st.binary(max_size=12))
def test_any_damage_is_a_checkpoint_error_or_harmless(tmp_path: Path, cut: int, put: bytes) -> None:
    header = {"a": entry("BF16", [3, 2], 0, 12), "b": entry("F32", [2], 12, 20)}
    path = raw(tmp_path, header, bytes(20)) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] + put + whole[cut + len(put) :])
    try:
        with Checkpoint.open(tmp_path) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.tensor(name).sum()
    except CheckpointError:
        pass


def test_tensor_stored_twice_is_refused(tmp_path: Path) -> None:
    model(tmp_path, two_shards())
    (tmp_path / INDEX).unlink()
    save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "model-extra.safetensors")
    assert "'model.norm.weight' is stored twice" in refusal(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    model(tmp_path, two_shards())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    message = refusal(tmp_path)
    assert "lacks model-00002-of-00002.safetensors" in message
    assert "finish the download" in message


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "a/../../x", "", "a\\..\\b"])
def test_index_that_points_outside_is_refused(tmp_path: Path, shard: str) -> None:
    model(tmp_path, two_shards())
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert "not a file inside the model" in refusal(tmp_path)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    model(tmp_path, two_shards())
    good = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    one, two = sorted(two_shards())
    for weight_map, says in (
        ({**good, "ghost": one}, "'ghost' in model-00001-of-00002.safetensors, but it is in no"),
        ({**good, "model.norm.weight": one}, f"but it is in {two}"),
        ({k: v for k, v in good.items() if k != "model.norm.weight"}, "does not list"),
    ):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        assert says in refusal(tmp_path)
    for text, says in (("{", "not valid JSON"), ("{}", "weight_map"), ('{"weight_map": 3}', "wei")):
        (tmp_path / INDEX).write_text(text)
        assert says in refusal(tmp_path)


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


# The Hub

CLIENT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError

def answer(name, steps):
    out = {}
    try:
        with Checkpoint.open(name) as checkpoint:
            for verb, *args in steps:
                value = getattr(checkpoint, verb)
                value = value(*args) if callable(value) else value
                if verb == "tensor":
                    value = value.float().sum().item()
                elif verb == "file":
                    value = value.read_text()
                out[verb] = value
            out["shapes"] = {n: list(i.shape) for n, i in checkpoint.tensors.items()}
    except CheckpointError as error:
        out["error"] = str(error)
    return out

for line in sys.stdin:
    print(json.dumps(answer(*json.loads(line))), flush=True)
"""


class Client:
    """A process with its own Hub environment that opens models and answers what it saw."""

    def __init__(self, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, name: str, *steps: list[str]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, steps]) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    folder = tmp_path_factory.mktemp("hub")
    good = model(folder / "good", two_shards())
    for name in ("tokenizer.json", "README.md", "pytorch_model.bin", "original/x.pth", "onnx/m"):
        (good / name).parent.mkdir(exist_ok=True)
        (good / name).write_text("text")
    pickled = folder / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_text("x")
    cut = model(folder / "cut") / "model.safetensors"
    os.truncate(cut, cut.stat().st_size - 10)
    names = {f"{'long' * 20}.{i}": torch.zeros(1) for i in range(900)}
    repos = {
        "org/good": good,
        "org/gated": good,
        "org/pickled": pickled,
        "org/cut": cut.parent,
        "org/long": model(folder / "long", {"model.safetensors": names}),
    }
    with HubServer(repos, gated=("org/gated",), down=("org/down",)) as server:
        yield server


@pytest.fixture(scope="module")
def clients(
    hub: HubServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Client]]:
    """Three processes with one cache: online, HF_HUB_OFFLINE, and with no Hub to be reached."""
    cache = tmp_path_factory.mktemp("cache")
    started = {
        "online": Client(hub.env(cache)),
        "offline": Client(hub.env(cache, HF_HUB_OFFLINE="1")),
        "unplugged": Client(hub.env(cache, HF_ENDPOINT="http://127.0.0.1:9")),
    }
    yield started
    for client in started.values():
        client.close()


def test_hub_model_downloads_only_what_is_read_and_then_opens_offline(
    hub: HubServer, clients: dict[str, Client]
) -> None:
    online, offline = clients["online"], clients["offline"]
    local = Checkpoint.open(hub.repos["org/good"])
    first, second = sorted(two_shards())
    name = local.shards[second][0]
    hub.log.clear()

    seen = online.ask("org/good", ["revision"], ["other_files"], ["tied"])
    assert seen["shapes"] == {n: list(i.shape) for n, i in local.tensors.items()}
    assert seen["revision"] == COMMIT
    assert seen["other_files"] == ["tokenizer.json"]
    assert sorted(hub.downloads()) == ["config.json", INDEX]
    assert sorted(hub.ranges()) == [first, second]

    hub.log.clear()
    seen = online.ask(f"org/good@{COMMIT}", ["tensor", name], ["file", "tokenizer.json"])
    assert seen["tensor"] == local.tensor(name).float().sum().item()
    assert seen["file"] == "text"
    assert sorted(hub.downloads()) == sorted([second, "tokenizer.json"])

    hub.log.clear()
    message = offline.ask("org/good")["error"]
    assert first in message
    assert second not in message
    assert "HF_HUB_OFFLINE" in message

    assert "error" not in online.ask("org/good", ["fetch"])
    assert hub.downloads() == [first]

    hub.log.clear()
    for client in (offline, clients["unplugged"]):
        for name in ("org/good", "org/good@main", f"org/good@{COMMIT}"):
            seen = client.ask(name, ["fingerprint"], ["revision"], ["file", "tokenizer.json"])
            assert seen["fingerprint"] == local.fingerprint()
            assert seen["revision"] == COMMIT
            assert seen["file"] == "text"
    assert hub.log == []

    hub.down.append("org/good")
    assert online.ask("org/good", ["fingerprint"])["fingerprint"] == local.fingerprint()
    hub.down.remove("org/good")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("org/absent", "neither a local folder nor a model on the Hub"),
        ("org/gated", "is gated: ask for access"),
        ("org/long@v9", "has no revision 'v9'"),
        ("org/pickled", "pickled weights only"),
        ("org/down", "answered 503"),
        ("org/cut", "is truncated"),
    ],
)
def test_hub_refusals_are_one_sentence_each(
    hub: HubServer, clients: dict[str, Client], name: str, says: str
) -> None:
    hub.log.clear()
    message = clients["online"].ask(name)["error"]
    assert says in message
    assert "\n" not in message
    assert set(hub.downloads()) <= {"config.json"}


@pytest.mark.parametrize("client", ["offline", "unplugged"])
def test_unreachable_hub_is_said_to_be_unreachable(clients: dict[str, Client], client: str) -> None:
    message = clients[client].ask("org/absent")["error"]
    assert "is not a local folder, and the Hub cannot be reached" in message


def test_long_hub_header_is_fetched_in_two_ranges(
    hub: HubServer, clients: dict[str, Client]
) -> None:
    hub.log.clear()
    assert len(clients["online"].ask("org/long")["shapes"]) == 900
    assert hub.ranges() == ["model.safetensors"] * 2
