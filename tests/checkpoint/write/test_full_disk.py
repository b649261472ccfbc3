"""Disks that refuse: one sentence, and the run can be continued."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from models import contents
from written_files import tensors, three_shards, write_all

from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.sink import CheckpointWriter
from regraft.checkpoint.write.staging import Staging
from regraft.errors import OutputError


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    def refusing(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refusing)


def test_too_small_a_disk_is_found_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Disk:
        f_bavail, f_frsize = 2, 1000

    monkeypatch.setattr(os, "statvfs", lambda _: Disk)
    with (
        Staging(tmp_path / "out", job="job") as staging,
        pytest.raises(OutputError, match=r"needs 1.\.\d kB, and 2 kB are free"),
    ):
        CheckpointWriter(staging, three_shards())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_refused_preallocation_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    refuse(monkeypatch, "posix_fallocate", code)
    with Staging(tmp_path / "out", job="job") as staging, pytest.raises(OutputError) as caught:
        CheckpointWriter(staging, three_shards())
    assert says in str(caught.value)
    assert "model-00001-of-00003.safetensors" in str(caught.value)


def test_file_system_without_preallocation_is_written_anyway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "posix_fallocate", errno.EOPNOTSUPP)
    write_all(tmp_path / "out")
    assert Checkpoint.open(tmp_path / "out").tensors.keys() == tensors().keys()


def test_disk_full_in_the_thread_surfaces_and_resume_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path / "straight")
    target = tmp_path / "out"
    with Staging(target, job="job") as staging:
        writer = CheckpointWriter(staging, three_shards())
        writer.write("norm", tensors()["norm"])
        writer._stop()
        with monkeypatch.context() as patch:
            refuse(patch, "pwrite", errno.ENOSPC)
            with pytest.raises(OutputError, match="the disk is full; make room") as caught:
                writer.write("embed", (tensors()["embed"][i : i + 1] for i in range(60)))
        assert caught.value.exit_code == 1
    assert not target.exists()
    with Staging(target, job="job", resume=True) as staging:
        writer = CheckpointWriter(staging, three_shards())
        assert [n for n in tensors() if writer.finished(n)] == ["norm"]
    write_all(target, resume=True)
    assert contents(target) == contents(tmp_path / "straight")


def test_error_in_the_blocks_leaves_the_tensor_unfinished(tmp_path: Path) -> None:
    def blocks() -> Iterator[torch.Tensor]:
        yield tensors()["embed"][:10]
        raise RuntimeError("computing failed")

    target = tmp_path / "out"
    with Staging(target, job="job") as staging:
        writer = CheckpointWriter(staging, three_shards())
        writer.write("norm", tensors()["norm"])
        with pytest.raises(RuntimeError, match="computing failed"):
            writer.write("embed", blocks())
    with Staging(target, job="job", resume=True) as staging:
        writer = CheckpointWriter(staging, three_shards())
        assert [n for n in tensors() if writer.finished(n)] == ["norm"]
