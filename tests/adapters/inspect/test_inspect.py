"""`regraft inspect`: which folders it takes, and what the command prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts import REGRAFT, Scripts
from typer.testing import CliRunner

from regraft.adapters.inspect.inspect import inspect_model
from regraft.cli import app
from regraft.errors import CheckpointError


def test_folder_without_model_or_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a model .* nor an adapter") as error:
        inspect_model(str(tmp_path))
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="does not exist"):
        inspect_model(str(tmp_path / "no" / "such" / "folder"))


def test_the_command_prints_no_markup(folders: dict[str, Path]) -> None:
    done = CliRunner().invoke(app, ["inspect", str(folders["base"]), str(folders["extended"])])
    assert done.exit_code == 0, done.output
    assert "Effective rank: of D" in done.stdout
    assert "[dim]" not in done.stdout


def test_the_command_prints_one_json_object(scripts: Scripts, folders: dict[str, Path]) -> None:
    done = scripts.run(REGRAFT, "inspect", folders["base"], folders["extended"], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "checkpoints"


def test_command_prints_tables_or_a_one_line_error(folders: dict[str, Path]) -> None:
    person = CliRunner().invoke(app, ["inspect", str(folders["lora"])])
    assert person.exit_code == 0
    assert "loads in vLLM" in person.stdout
    nothing = CliRunner().invoke(app, ["inspect", str(folders["base"].parent)])
    assert (nothing.exit_code, nothing.stdout) == (2, "")
    assert nothing.stderr.startswith("regraft: ")
    assert nothing.stderr.count("\n") == 1
