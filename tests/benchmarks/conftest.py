"""Benchmarks called in this process, with toy sizes."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results"


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def benchmark(monkeypatch, tmp_path, children):
    """Call `main` of a benchmark with arguments, its commands in warmed-up processes. Asserts that
    no table changed; returns what it printed and the commands of mergekit."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)  # so that the default folder, which is relative, is a new one
    mergekit: list[list[str]] = []

    def run(command: list[str], **env: str) -> Any:
        from harness import Child

        name = Path(command[0]).name
        if name == "regraft":
            done = children.run(*command[1:])
            assert done["code"] == 0, done["err"]
        elif name.startswith("mergekit"):
            mergekit.append(command)
        elif command[1] == "-c" and name != "sh":
            with monkeypatch.context() as patch:
                patch.setattr(sys, "argv", command[1:2] + command[3:])
                exec(command[2], {"__name__": "__main__"})
        else:
            subprocess.run(command, check=True, env={**os.environ, **env})
        return Child(1.0 + len(mergekit) + run.calls, 1.0, 10**9)

    run.calls = 0

    def timed(command: list[str], **env: str) -> Any:
        run.calls += 1  # a later run takes longer, so that no difference of times is zero
        return run(command, **env)

    def call(name: str, *arguments: str | Path) -> tuple[str, list[list[str]], ModuleType]:
        module = importlib.import_module(name)
        if hasattr(module, "run"):
            monkeypatch.setattr(module, "run", timed)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        before = {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()}
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                code = module.main()
            except SystemExit as stop:
                code = stop.code
        assert not code, printed.getvalue()
        assert {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()} == before
        return printed.getvalue(), mergekit, module

    return call
