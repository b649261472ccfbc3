"""Export as a job: one file, published whole, resumed, replaced only if regraft wrote it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from commands import refused, run
from gguf_files import read_gguf, speaking

from regraft.checkpoint.write.sink import CheckpointWriter
from regraft.errors import InputError
from regraft.export.job import export_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return speaking(tmp_path_factory.mktemp("models") / "m")


def test_the_same_model_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    for name in ("one.gguf", "two.gguf"):
        export_gguf(model, tmp_path / name, verify=True)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.gguf", "two.gguf"]


def test_an_interrupted_run_resumes_to_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_gguf(model, tmp_path / "whole.gguf")
    original, count = CheckpointWriter.write, iter(range(100))

    def interrupted(self, name, blocks):
        if next(count) == 8:
            raise KeyboardInterrupt
        original(self, name, blocks)

    out = tmp_path / "m.gguf"
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_gguf(model, out)
    assert not out.exists()
    with pytest.raises(InputError, match="--resume continues it"):
        export_gguf(model, out)
    record = export_gguf(model, out, resume=True)
    assert record.lost_to_rounding is None
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_only_a_file_of_regraft_is_replaced(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    export_gguf(model, out)
    with pytest.raises(InputError, match="exists; choose another name or replace it"):
        export_gguf(model, out)
    export_gguf(model, out, dtype="float32", overwrite=True)
    assert read_gguf(out)[0]["general.file_type"] == 0
    out.write_bytes(b"GGUF of somebody else")
    with pytest.raises(InputError, match="is not a file that regraft wrote"):
        export_gguf(model, out, overwrite=True)
    assert out.read_bytes() == b"GGUF of somebody else"
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        export_gguf(model, tmp_path / "folder")
    with pytest.raises(InputError, match="overlaps the input"):
        export_gguf(model, model / "m.gguf")


def test_the_command_prints_how_to_run_it(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    planned = run("export", model, "-o", out, "--dry-run")
    assert "write" in planned.stdout
    assert not out.exists()
    done = run("export", model, "-o", out, "-q")
    assert done.exit_code == 0, done.stderr
    assert "llama-server -m" in done.stdout
    assert "theta 10000" in done.stdout


def test_bad_arguments_are_refused_in_one_sentence(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    assert "is not one of float16, float32" in refused(
        run("export", model, "-o", out, "--dtype", "int8")
    )
    assert "does not exist" in refused(run("export", tmp_path / "nothing", "-o", out))


def test_without_the_package_it_says_what_to_install(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install 'regraft\[gguf\]'"):
        export_gguf(model, tmp_path / "m.gguf")
