"""One command: its result as JSON or tables, or one line and an exit code for its error."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import models
import pytest
from commands import refused, run

from regraft.errors import OutputError


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> tuple[Path, Path, Path]:
    return models.family(tmp_path_factory.mktemp("family"))


def test_json_is_one_object_on_stdout_whatever_libraries_say(family, tmp_path, children):
    base, long, derivative = family
    done = children.run("extract-lora", base, long, "-o", tmp_path / "a", "--rank", 4, "--json")
    assert done["code"] == 0, done["err"]
    assert json.loads(done["out"]) == json.loads((tmp_path / "a/regraft.json").read_text())
    assert done["out"].count("\n") == 1
    assert done["err"] == ""
    (tmp_path / "a/regraft.json").unlink()
    (tmp_path / "a/regraft-lineage.safetensors").unlink()
    done = children.run("apply", tmp_path / "a", derivative, "-o", tmp_path / "out", "--json")
    assert done["code"] == 0, done["err"]
    assert json.loads(done["out"])["kind"] == "graft"
    assert re.fullmatch(r"regraft: warning: [^\n]* carries no context[^\n]*\n", done["err"])


def test_json_says_no_infinity(monkeypatch):
    from regraft import theta

    report = theta.theta_report(8192, 16384, 500000)
    endless = replace(report, base=math.inf)
    monkeypatch.setattr(theta, "theta_report", lambda *_: endless)
    assert "NaN or infinity" in refused(run("theta", "8k", "1M", "--json"), 1)


def test_a_dry_run_shows_sizes_for_people_and_writes_nothing(family, tmp_path):
    base, long, _ = family
    printed = run("extract-lora", base, long, "-o", tmp_path / "a", "--rank", 4, "--dry-run")
    assert printed.exit_code == 0
    assert re.search(r"write +14\.8 kB", printed.stdout)
    assert "_bytes" not in printed.stdout
    parsed = json.loads(
        run("extract-lora", base, long, "-o", tmp_path / "a", "--rank", 4, "--dry-run", "--json")
        .stdout
    )  # fmt: skip
    assert parsed["plan"]["write_bytes"] == 14848
    assert list(tmp_path.iterdir()) == []


def test_brackets_in_names_are_printed_unchanged(family, tmp_path):
    done = run(
        "extract-lora", *family[:2], "-o", tmp_path / "[red]x[1]", "--rank", 2, "--no-verify"
    )
    assert "[red]x[1]" in done.stdout.replace("\n", "")
    assert (tmp_path / "[red]x[1]" / "regraft.json").is_file()


def test_quiet_says_nothing_on_stderr(family, tmp_path):
    done = run("extract-lora", *family[:2], "-o", tmp_path / "a", "--rank", 2, "-q")
    assert done.exit_code == 0
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OutputError("Cannot write x: the disk is full."), 1, "Cannot write x"),
        (MemoryError("3 GB"), 1, "not enough memory"),
        (OSError(28, "No space left on device", "/x/y"), 1, "Cannot access /x/y: the disk is full"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 1, "not enough GPU memory; close"),
        (
            type("OutOfMemoryError", (RuntimeError,), {})(
                "CUDA out of memory. Tried to allocate 6.69 GiB. GPU 0 has a total capacity of "
                "79.18 GiB of which 3.52 GiB is free. Including non-PyTorch memory, this process"
            ),
            1,
            "memory: 6.69 GiB more were requested, 3.52 GiB of 79.18 GiB are free; close what",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_failure_is_one_line_and_its_code(error, code, message, monkeypatch):
    from regraft import theta

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(theta, "theta_report", fail)
    assert message in refused(run("theta", "8k", "1M"), code)
    if code == 1:
        assert type(run("theta", "8k", "1M", "--debug").exception) is type(error)


def test_a_bug_is_one_line_and_a_traceback_with_debug(monkeypatch):
    from regraft import theta

    monkeypatch.setattr(theta, "theta_report", lambda *_: 1 / 0)
    result = run("theta", "8k", "1M")
    assert result.exit_code == 1
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert isinstance(run("theta", "8k", "1M", "--debug").exception, ZeroDivisionError)
