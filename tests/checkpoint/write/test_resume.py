"""A run that died is continued to the same bytes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from models import contents
from scripts import Scripts
from written_files import JOURNAL, tensors, three_shards, unfinished, write_all

from regraft.checkpoint.read.files import INDEX
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write import sink
from regraft.checkpoint.write.journal import Journal
from regraft.checkpoint.write.sink import CheckpointWriter
from regraft.checkpoint.write.staging import Staging
from regraft.errors import InputError, OutputError

VICTIM = """
import os, signal, sys
from pathlib import Path
import written_files
from regraft.checkpoint.write import disk, sink

write_at, count = sink.write_at, 0
def dying(fd, data, at):
    # Die with half of this tensor written.
    global count
    count += 1
    if count == int(sys.argv[2]):
        write_at(fd, data[: len(data) // 2], at)
        os.kill(os.getpid(), signal.SIGKILL)
    write_at(fd, data, at)
sink.write_at = disk.write_at = dying
written_files.write_all(Path(sys.argv[1]))
"""


def test_resume_after_kill_gives_same_bytes(tmp_path: Path, scripts: Scripts) -> None:
    write_all(tmp_path / "straight")
    target = tmp_path / "out"
    # Three headers are written, two tensors are finished, the third is cut.
    ran = scripts.run(VICTIM, target, "6")
    assert ran.returncode == -signal.SIGKILL
    assert not target.exists()
    with pytest.raises(InputError, match="--resume continues it, --overwrite starts again"):
        write_all(target)
    with Staging(target, job="job", resume=True) as staging:
        writer = CheckpointWriter(staging, three_shards())
        assert [n for n in tensors() if writer.finished(n)] == ["embed", "norm"]
    write_all(target, resume=True)
    assert contents(target) == contents(tmp_path / "straight")
    assert list(tmp_path.glob(".*")) == []


def test_resume_writes_again_what_changed_on_disk(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with Staging(target, job="job") as staging:
        writer = CheckpointWriter(staging, three_shards())
        for name in ("embed", "norm"):
            writer.write(name, tensors()[name])
    shard = staging.folder / next(iter(three_shards()))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with Staging(target, job="job", resume=True) as staging:
        writer = CheckpointWriter(staging, three_shards())
        assert [writer.finished(name) for name in ("embed", "norm")] == [True, False]
    write_all(target, resume=True)
    write_all(tmp_path / "straight")
    assert contents(target) == contents(tmp_path / "straight")


def test_resume_with_a_lost_shard_writes_it_again(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with Staging(target, job="job") as staging:
        CheckpointWriter(staging, three_shards()).write("embed", tensors()["embed"])
    next(iter(staging.folder.glob("*.safetensors"))).unlink()
    write_all(target, resume=True)
    assert torch.equal(Checkpoint.open(target).tensor("embed"), tensors()["embed"])


def test_torn_last_journal_line_is_forgotten(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "out")
    whole = (folder / JOURNAL).read_bytes()
    for torn in (b'{"key": "tor', b'{"key": "torn"}', b"\0\0\0\0\n"):
        (folder / JOURNAL).write_bytes(whole + torn)
        with Staging(tmp_path / "out", job="job", resume=True) as staging:
            assert staging.done("piece") == {"size": 3}
            assert staging.done("torn") is None
            staging.record("next")
        assert (folder / JOURNAL).read_bytes() == whole + b'{"key": "next"}\n'


def test_journal_line_comes_after_the_bytes_and_index_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    write_at, append = sink.write_at, Journal.append

    def noting(fd: int, data: memoryview, at: int) -> None:
        write_at(fd, data, at)
        events.append("bytes")

    def noting_line(self: Journal, entry: dict[str, object]) -> None:
        append(self, entry)
        events.append(str(entry.get("key")))
        assert not (self.path.parent / INDEX).exists()

    monkeypatch.setattr(sink, "write_at", noting)
    monkeypatch.setattr(Journal, "append", noting_line)
    with Staging(tmp_path / "out", job="job") as staging:
        writer = CheckpointWriter(staging, three_shards())
        events.clear()
        for name, value in tensors().items():
            writer.write(name, value)
        writer.finish()
        assert (staging.folder / INDEX).exists()
        facts = staging.done("tensor:embed")
        assert facts is not None
        assert facts["bytes"] == tensors()["embed"].nbytes
    assert events == [
        "bytes", "tensor:embed", "bytes", "tensor:norm", "bytes", "tensor:up",
        "bytes", "tensor:scalar", "tensor:none", "bytes", "tensor:ids",
    ]  # fmt: skip


def test_verify_finds_bytes_that_changed_after_writing(tmp_path: Path) -> None:
    with Staging(tmp_path / "out", job="job") as staging:
        writer = CheckpointWriter(staging, three_shards(), verify=True)
        for name, value in tensors().items():
            writer.write(name, value)
        writer._stop()
        shard = staging.folder / list(three_shards())[1]
        with open(shard, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x55")
        with pytest.raises(OutputError, match="does not read back"):
            writer.finish()
