"""Scripts in forks of the process that has done the imports, each with its own environment.

`Scripts.run` is `subprocess.run([sys.executable, "-c", code, *arguments])` without the imports.
huggingface_hub reads its variables again; those that Python reads when it starts, such as
PYTHONHASHSEED, or torch when it is imported need a new interpreter.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warm import WarmProcess, exit_code, fork, redirect

REGRAFT = "from regraft.cli import main; main()"


@dataclass(frozen=True)
class Done:
    """How a script ended; as subprocess's CompletedProcess."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Scripts:
    """Scripts in children of a process that has done the imports."""

    warm: WarmProcess

    def run(
        self,
        code: str,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Done:
        """Run `code` with sys.argv[1:] = arguments. env: the whole environment; cwd: the working
        directory; both by default those of the test."""
        job = {
            "code": code, "arguments": [str(argument) for argument in arguments],
            "env": dict(os.environ if env is None else env), "cwd": str(cwd or Path.cwd()),
        }  # fmt: skip
        return Done(*self.warm.ask("scripts", job))


def serve(job: dict[str, Any], folder: Path) -> list[Any]:
    """[exit code, standard output, standard error] of a script in a child of this process."""
    out, err = folder / "out", folder / "err"
    child = fork()
    if child == 0:
        redirect(1, out)
        redirect(2, err)
        os._exit(_run(job))
    return [exit_code(child), out.read_text(), err.read_text()]


def _run(job: dict[str, Any]) -> int:
    """Run the script; its exit code."""
    code = 0
    try:
        os.chdir(job["cwd"])
        os.environ.clear()
        os.environ.update(job["env"])
        _read_environment()
        sys.modules["torch"].set_num_threads(1)  # see `forked`
        sys.argv = ["-c", *job["arguments"]]
        exec(compile(job["code"], "<script>", "exec"), {"__name__": "__main__"})
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


def _read_environment() -> None:
    """Have huggingface_hub use this process's environment."""
    from huggingface_hub import constants, hf_api

    importlib.reload(constants)
    hf_api.api.endpoint = constants.ENDPOINT
