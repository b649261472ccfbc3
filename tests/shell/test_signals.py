"""Signals: one line, an exit code, and output that --resume continues."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import models
import pytest
from commands import run

from regraft.shell.signals import Interrupted


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> tuple[Path, Path, Path]:
    return models.family(tmp_path_factory.mktemp("family"))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "terminated (SIGTERM)"),
        (signal.SIGHUP, "the terminal was closed (SIGHUP)"),
    ],
)
@pytest.mark.parametrize("command", ["extract-lora", "apply"])
def test_a_signal_is_one_line_its_code_and_resumable(
    command, number, message, family, tmp_path, children
):
    base, long, derivative = family
    if command == "apply":
        assert children.run("extract-lora", base, long, "-o", tmp_path / "a", "-q")["code"] == 0
        line = ["apply", tmp_path / "a", derivative, "-q", "-o"]
    else:
        line = ["extract-lora", base, long, "--no-verify", "-q", "-o"]
    whole = children.run(*line, tmp_path / "whole")
    out = tmp_path / "out"
    stopped = children.run(*line, out, die=whole["calls"] // 2, with_signal=number)
    assert stopped["code"] == 128 + number
    assert stopped["err"] == f"regraft: {message}; --resume continues where it can\n"
    assert stopped["out"] == ""
    assert not out.exists()
    assert (tmp_path / ".out.regraft-staging").is_dir()
    assert children.run(*line, out, "--resume")["code"] == 0
    assert models.contents(out) == models.contents(tmp_path / "whole")


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import os, signal, sys; from regraft.shell.process import run_app\n"
        "class App:\n"
        "    def __call__(self, _):\n"
        "        try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "        finally: os.kill(os.getpid(), signal.SIGTERM); print('cleanup that hangs')\n"
        "run_app(App())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == "regraft: terminated (SIGTERM)\n"


def test_resuming_is_offered_by_commands_that_have_it(monkeypatch):
    from regraft import theta
    from regraft.adapters.extract import extract

    def stop(*_: object, **__: object) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(theta, "theta_report", stop)
    monkeypatch.setattr(extract, "extract_lora", stop)
    assert run("extract-lora", "a", "b", "-o", "c").stderr == (
        "regraft: interrupted; --resume continues where it can\n"
    )
    assert run("theta", "8k", "1M").stderr == "regraft: interrupted\n"


@pytest.mark.parametrize("more", ["time.sleep(60); print('it went on')", "pass  # it ends first"])
@pytest.mark.parametrize("drops", ["__del__", "a weak reference's callback"])
def test_a_signal_that_comes_where_python_drops_errors_is_not_lost(drops, more):
    code = (
        "import os, signal, time, weakref; from regraft.shell.process import run_app\n"
        "def stop(*_): os.kill(os.getpid(), signal.SIGTERM)\n"
        "class Object: pass\n"
        "class Freed:\n"
        "    def __del__(self): stop()\n"
        "def app(_):\n"
        f"    freed = Freed() if {drops == '__del__'} else Object()\n"
        "    reference = weakref.ref(freed, stop) if type(freed) is Object else None\n"
        f"    del freed; {more}\n"
        "run_app(app)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == "regraft: terminated (SIGTERM)\n"


def test_an_error_that_python_ignores_is_one_line():
    code = (
        "from regraft import progress\nfrom regraft.shell.process import run_app\n"
        "class Freed:\n"
        "    def __del__(self): raise OSError('line one\\nline two')\n"
        "def app(_):\n"
        "    progress.configure(quiet=False); freed = Freed(); del freed\n"
        "run_app(app)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == "warning: an error was ignored (OSError: line one line two)\n"


def test_ignored_signals_stay_ignored():
    code = (
        "import os, signal; from regraft.shell.process import run_app\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "run_app(lambda _: os.kill(os.getpid(), signal.SIGHUP))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
