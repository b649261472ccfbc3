"""Which folder a command may write or replace: no input, and nothing that regraft did not write."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from models import contents, earlier_output

from regraft.checkpoint.write.manifest import MANIFEST, foreign_files, remove_output
from regraft.checkpoint.write.staging import Staging
from regraft.checkpoint.write.target import check_target
from regraft.errors import InputError


def refused(out: Path | str, *inputs: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        check_target(out, overwrite=True, inputs=inputs)
    return str(caught.value)


@pytest.mark.parametrize("name", ["result.json", "config.json", "regraft.json"])
def test_a_folder_without_the_list_of_files_is_never_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    assert "is not one that regraft wrote" in refused(tmp_path / "out")


@pytest.mark.parametrize("content", ["", "[]", '{"schema_version": 1}', "[" * 100_000])
def test_a_broken_list_of_files_is_none(content: str, tmp_path: Path) -> None:
    out = earlier_output(tmp_path / "out", a_txt="x")
    (out / MANIFEST).write_text(content)
    assert "is not one that regraft wrote" in refused(out)


def test_a_foreign_file_is_named_and_protects_the_folder(tmp_path: Path) -> None:
    out = earlier_output(tmp_path / "out", config_json="{}")
    check_target(out, overwrite=True)
    (out / "empty").mkdir()
    check_target(out, overwrite=True)
    (out / "items").mkdir()
    (out / "items" / "thesis.txt").write_text("years of work")
    assert "(items/thesis.txt)" in refused(out)
    (out / "more").write_text("x")
    assert "(items/thesis.txt and 1 more)" in refused(out)


@pytest.mark.parametrize("text", ["longer than it was", "{.}"])
def test_a_file_that_was_edited_is_the_users(text: str, tmp_path: Path) -> None:
    out = earlier_output(tmp_path / "out", README_md="{ }")
    (out / "README.md").write_text(text)
    assert "README.md" in refused(out)


def test_a_link_in_the_place_of_a_written_file_is_foreign(tmp_path: Path) -> None:
    out = earlier_output(tmp_path / "out", a_txt="same")
    (tmp_path / "real.txt").write_text("same")
    (out / "a.txt").unlink()
    (out / "a.txt").symlink_to(tmp_path / "real.txt")
    (out / "folder").symlink_to(tmp_path)
    assert foreign_files(out) == ["a.txt", "folder"]


def test_a_file_that_comes_while_the_output_is_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = earlier_output(tmp_path / "out", old_txt="old")
    rename = Path.rename

    def rename_after_a_download(self: Path, to: Path) -> Path:
        if self == out:
            (self / "download").write_text("precious")
        return rename(self, to)

    with Staging(out, job="job", overwrite=True) as staging:
        (staging.folder / "new.txt").write_text("new")
        monkeypatch.setattr(Path, "rename", rename_after_a_download)
        with pytest.warns(UserWarning, match="download"):
            staging.publish()
    left = {path.name: contents(path) for path in tmp_path.iterdir()}
    aside = next(name for name in left if name.startswith("out-kept-"))
    assert left[aside] == {"download": b"precious"}
    assert "new.txt" in left["out"]
    assert len(left) == 2


def test_removal_takes_written_files_and_leaves_the_rest(tmp_path: Path) -> None:
    out = earlier_output(tmp_path / "out", a_txt="a", b_txt="b")
    (out / "mine").write_text("mine")
    assert remove_output(out) == ["mine"]
    assert {path.name for path in out.iterdir()} == {"mine", MANIFEST}
    (out / "mine").unlink()
    assert remove_output(out) == []
    assert not out.exists()


def test_the_list_is_the_same_for_the_same_files(tmp_path: Path) -> None:
    one, two = (earlier_output(tmp_path / name, b_txt="b", a_txt="a") for name in "xy")
    assert (one / MANIFEST).read_bytes() == (two / MANIFEST).read_bytes()
    assert list(json.loads((one / MANIFEST).read_text())["files"]) == ["a.txt", "b.txt"]


# Inputs


@pytest.mark.parametrize("out", ["model", "model/deep/out", ".", "link/out"])
def test_an_output_in_or_around_an_input_is_refused(out: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    assert "overlaps the input" in refused(tmp_path / out, "org/name", tmp_path / "model")


def test_an_input_file_within_an_earlier_output_is_refused(tmp_path: Path) -> None:
    out = earlier_output(tmp_path / "out", notes_txt="text")
    assert "overlaps the input" in refused(out, out / "notes.txt")


def test_what_a_link_in_an_input_folder_points_to_is_an_input(tmp_path: Path) -> None:
    out = earlier_output(tmp_path / "out", model_safetensors="weights")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").symlink_to(out / "model.safetensors")
    assert "overlaps the input" in refused(out, tmp_path / "model")


def test_the_staging_folder_of_the_output_is_no_input(tmp_path: Path) -> None:
    with Staging(tmp_path / "out", job="job") as staging:
        staging.record("piece")
        assert "overlaps the input" in refused(tmp_path / "out", staging.folder)


# Paths


@pytest.mark.parametrize(
    ("out", "says"),
    [("", "is empty"), ("a\0b", "not a name"), ("/", "can be replaced"), (".", "current folder"),
     ("..", "current folder"), ("x" * 300, "name is too long")],
)  # fmt: skip
def test_what_is_no_folder_for_an_output_is_refused(
    out: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(Exception, match=says):
        check_target(out)
    assert list((tmp_path / "here").iterdir()) == []


def test_missing_parents_are_made_and_a_file_among_them_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert f"{tmp_path / 'file'} is a file" in refused(tmp_path / "file" / "a" / "out")
    assert check_target(tmp_path / "a" / "b" / "out") == tmp_path / "a" / "b" / "out"


def test_a_parent_that_may_not_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert f"{tmp_path} may not be written to" in refused(tmp_path / "a" / "out")


def test_files_of_somebody_else_in_the_staging_folder_are_not_removed(tmp_path: Path) -> None:
    hidden = tmp_path / ".out.regraft-staging"
    hidden.mkdir()
    (hidden / "mine").write_text("mine")
    with pytest.raises(InputError, match="regraft did not write"):
        Staging(tmp_path / "out", job="job", overwrite=True)
    assert contents(hidden) == {"mine": b"mine"}
