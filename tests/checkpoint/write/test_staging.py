"""The staging folder, from its first file to its publication."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from models import contents, earlier_output
from written_files import published, unfinished, write_all

from regraft.checkpoint.read.files import INDEX
from regraft.checkpoint.write.staging import Staging
from regraft.errors import InputError, OutputError


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
