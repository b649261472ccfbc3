"""Writing checkpoints: the staging folder's life, resume to the same bytes, and full disks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import contents, earlier_output
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from regraft.checkpoint.read.files import INDEX
from regraft.checkpoint.read.header import DTYPES
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write import sink
from regraft.checkpoint.write.journal import Journal
from regraft.checkpoint.write.shard_plan import PlannedTensor, plan_shards, write_safetensors
from regraft.checkpoint.write.sink import CheckpointWriter
from regraft.checkpoint.write.staging import Staging
from regraft.errors import InputError, OutputError

JOURNAL = ".regraft-journal.jsonl"


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "embed": torch.randn(60, 32, generator=draw).bfloat16(),
        "norm": torch.randn(33, generator=draw).bfloat16(),
        "up": torch.randn(50, 32, generator=draw),
        "scalar": torch.tensor(3.5),
        "none": torch.zeros(0, 7),
        "ids": torch.arange(9),
    }


def planned(values: dict[str, torch.Tensor]) -> list[PlannedTensor]:
    return [PlannedTensor(name, tuple(t.shape), t.dtype) for name, t in values.items()]


def three_shards() -> dict[str, list[PlannedTensor]]:
    return plan_shards(planned(tensors()), like=None, max_shard_bytes=4000)


def write_all(target: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    with Staging(target, job="job", resume=resume, overwrite=overwrite) as staging:
        writer = CheckpointWriter(staging, three_shards())
        for name, value in tensors().items():
            if not writer.finished(name):
                writer.write(name, value)
        writer.add_file("config.json", b"{}")
        writer.finish()
        staging.publish()


def published(folder: Path) -> dict[str, bytes]:
    """The files of an output, without the list of them."""
    files = contents(folder)
    files.pop(".regraft-files.json", None)
    return files


def unfinished(target: Path, *, job: str = "job") -> Path:
    """The staging folder of a run that finished one piece."""
    with Staging(target, job=job) as staging:
        (staging.folder / "half").write_text("half")
        staging.record("piece", size=3)
    return staging.folder


# Files that others can read


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
        wanted = [PlannedTensor(i.name, i.shape, i.dtype) for i in source.tensors.values()]
        writer = CheckpointWriter(
            staging, plan_shards(wanted, like=source, max_shard_bytes=9000), verify=True
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


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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
    order.shuffle(items)  # type: ignore[attr-defined]
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


# Which tensor goes to which shard


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


# Death and resume

VICTIM = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_sink as t
from regraft.checkpoint.write import disk, sink

write_at, count = sink.write_at, 0
def dying(fd, data, at):
    # Die with half of this tensor written.
    global count
    count += 1
    if count == int(sys.argv[3]):
        write_at(fd, data[: len(data) // 2], at)
        os.kill(os.getpid(), signal.SIGKILL)
    write_at(fd, data, at)
sink.write_at = disk.write_at = dying
t.write_all(Path(sys.argv[2]))
"""


def test_resume_after_kill_gives_same_bytes(tmp_path: Path) -> None:
    write_all(tmp_path / "straight")
    target = tmp_path / "out"
    # Three headers are written, two tensors are finished, the third is cut.
    ran = subprocess.run(
        [sys.executable, "-c", VICTIM, str(Path(__file__).parent), str(target), "6"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
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


# A disk that refuses


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


# The staging folder's life


def test_nothing_is_visible_before_publish_and_nothing_else_after(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with Staging(target, job="job") as staging:
        (staging.spool / "intermediate").write_text("x")
        (staging.folder / "result").write_text("x")
        staging.record("piece")
        assert not target.exists()
        staging.publish()
    assert published(target) == {"result": b"x"}
    assert list(target.parent.iterdir()) == [target]


def test_a_run_that_recorded_nothing_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Staging(tmp_path / "out", job="job") as staging:
            (staging.folder / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_unfinished_run_needs_resume_or_overwrite(tmp_path: Path) -> None:
    target = tmp_path / "out"
    folder = unfinished(target)
    with pytest.raises(InputError, match="--resume continues it, --overwrite starts again"):
        Staging(target, job="job")
    with Staging(target, job="job", resume=True) as staging:
        assert staging.done("piece") == {"size": 3}
        assert (folder / "half").exists()
    with Staging(target, job="job", overwrite=True) as staging:
        assert staging.done("piece") is None
        assert not (folder / "half").exists()


def test_resume_of_another_job_is_refused_and_harmless(tmp_path: Path) -> None:
    target = tmp_path / "out"
    folder = unfinished(target)
    before = contents(folder)
    with pytest.raises(InputError, match="other inputs or arguments"):
        Staging(target, job="other", resume=True)
    assert contents(folder) == before
    with Staging(target, job="other", resume=True, overwrite=True) as staging:
        assert staging.done("piece") is None


def test_resume_without_staging_starts(tmp_path: Path) -> None:
    write_all(tmp_path / "out", resume=True)
    assert (tmp_path / "out" / INDEX).exists()


def test_target_that_is_not_free_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    write_all(target)  # an empty folder is fine
    before = contents(target)
    for resume in (False, True):
        with pytest.raises(InputError, match="is not empty"):
            write_all(target, resume=resume)
    assert contents(target) == before
    (tmp_path / "file").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is a file"):
            write_all(tmp_path / "file", overwrite=overwrite)
    with pytest.raises(InputError, match=r"file/out cannot be made, since .*file is a file"):
        write_all(tmp_path / "file" / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out"]


def test_overwrite_keeps_the_old_target_until_the_new_is_ready(tmp_path: Path) -> None:
    target = tmp_path / "out"
    earlier_output(target, config_json="old")
    with Staging(target, job="job", overwrite=True) as staging:
        staging.record("piece")
    assert published(target) == {"config.json": b"old"}
    with Staging(target, job="job", overwrite=True, resume=True) as staging:
        assert staging.done("piece") == {}
        (staging.folder / "new").write_text("new")
        assert published(target) == {"config.json": b"old"}
        staging.publish()
    assert published(target) == {"new": b"new"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("survivor", ["old", "new"])
def test_death_while_the_target_is_replaced_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survivor: str
) -> None:
    target = tmp_path / "out"
    earlier_output(target, config_json="old")
    staging = Staging(target, job="job", overwrite=True)
    staging.record("piece")
    (staging.folder / "new").write_text("new")
    dies_after = target if survivor == "old" else staging.folder
    rename = Path.rename

    def dying(self: Path, to: Path) -> Path:
        moved = rename(self, to)
        if self == dies_after:
            raise KeyboardInterrupt  # as a kill: what follows is not run
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(KeyboardInterrupt):
            staging.publish()
    staging.close()
    if survivor == "new":
        assert (target / "new").exists()
        return
    with Staging(target, job="job", overwrite=True, resume=True) as staging:
        assert published(target) == {"config.json": b"old"}
        assert (staging.folder / "new").exists()


def test_a_target_filled_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with Staging(target, job="job") as staging:
        staging.record("piece")
        target.mkdir()
        (target / "other").write_text("x")
        with pytest.raises(InputError, match="is not empty"):
            staging.publish()
    assert contents(target) == {"other": b"x"}
    assert staging.folder.exists()


def test_two_processes_cannot_write_one_target(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with Staging(target, job="job") as staging:
        staging.record("piece")
        for flags in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(InputError, match="Another regraft process is writing"):
                Staging(target, job="job", **flags)
        assert staging.done("piece") == {}
    with Staging(target, job="job", resume=True) as staging:
        assert staging.done("piece") == {}


def test_target_that_overlaps_an_input_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "link").symlink_to(model)
    for target in (model, model / "out", tmp_path, tmp_path / "link" / "out"):
        with pytest.raises(InputError, match="overlaps the input"):
            Staging(target, job="job", overwrite=True, inputs=["org/name", model])
    assert list(model.iterdir()) == []
    with Staging(tmp_path / "model-out", job="job", inputs=[tmp_path / "absent", model]):
        pass


def test_read_only_parent_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "mkdir", denied)
    with pytest.raises(OutputError, match="permission is denied"):
        Staging(tmp_path / "out", job="job")


def test_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refusing)
    with pytest.warns(UserWarning, match="has no locks"):
        write_all(tmp_path / "out")
