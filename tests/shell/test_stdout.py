"""Standard output: nothing but the result in it, and one line where it is full or closed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import models
import pytest


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> tuple[Path, Path, Path]:
    return models.family(tmp_path_factory.mktemp("family"))


@pytest.mark.parametrize("as_json", [True, False])
def test_what_libraries_print_is_no_part_of_a_result(as_json):
    """Also what they print in C or Rust, past Python's sys.stdout."""
    code = (
        "import os; from regraft.shell.command import Command, Options, run_command\n"
        "def work():\n"
        "    print('from Python')\n"
        "    os.write(1, b'from Rust\\n')\n"
        "    return {'a': 1}\n"
        f"run_command(Command(work, lambda result: ['done']), Options(as_json={as_json}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ('{"a": 1}\n' if as_json else "done\n")
    assert sorted(done.stderr.splitlines()) == ["from Python", "from Rust"]


@pytest.mark.parametrize("stdout", ["/dev/full", ""])
@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_a_result_that_cannot_be_printed_is_one_line(stdout, option, family, tmp_path, children):
    if stdout and not Path(stdout).exists():
        pytest.skip("no full device here")
    line = ["extract-lora", *family[:2], "--rank", 2, "--no-verify", option, "-o"]
    done = children.run(*line, tmp_path / "a", stdout=stdout)
    assert done["code"] == 1
    line_of_error = (
        r"regraft: The result cannot be written to standard output \([^\n]+\); [^\n]+complete\.\n"
    )
    assert re.fullmatch(line_of_error, done["err"])
    assert (tmp_path / "a" / "regraft.json").is_file()


@pytest.mark.parametrize("stdout", ["/dev/full", ""])
@pytest.mark.parametrize(
    "argv", [["--version"], ["--help"], ["merge", "--schema"], ["theta", "--help"]]
)
def test_help_that_cannot_be_printed_is_one_line(argv, stdout, children):
    if stdout and not Path(stdout).exists():
        pytest.skip("no full device here")
    done = children.run(*argv, stdout=stdout)
    assert done["code"] in ((1,) if stdout else (0, 1))  # Python prints to a closed one in silence
    assert re.fullmatch(r"(regraft: [^\n]+\n)?", done["err"])
    assert done["err"] or not stdout


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_a_reader_that_has_gone_is_one_line(option):
    line = [sys.executable, "-m", "regraft", "theta", "8k", "1M", option]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 1
    assert re.fullmatch(r"regraft: [^\n]*Broken pipe[^\n]*\n", done.stderr)


def test_full_or_closed_stderr_does_not_stop_the_work():
    line = [sys.executable, "-m", "regraft", "theta", "8k", "1M"]
    for redirection in ("2>&-", "2>/dev/full"):
        shell_line = " ".join((*line, redirection))
        done = subprocess.run(shell_line, shell=True, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "3580165449\n"), redirection
