"""Headers of safetensors files, whole and damaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import entry, model, raw, refusal

from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError


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
        ({"t": entry("F32", [1.0], 0, 4)}, b"abcd", "whole numbers"),
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


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
