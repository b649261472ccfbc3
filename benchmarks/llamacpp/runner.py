"""llama.cpp in a process of another interpreter, and the files for it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import regraft

CHILD = Path(__file__).with_name("child.py")


class Llama:
    """llama.cpp by the interpreter `python`, with scratch files in `folder`."""

    def __init__(self, python: str, folder: Path) -> None:
        self.python, self.folder = python, folder

    def version(self) -> str | None:
        code = "import llama_cpp; print(llama_cpp.__version__)"
        try:
            done = subprocess.run([self.python, "-c", code], capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    def missing(self, requirement: str) -> str:
        """The message where llama-cpp-python is not installed. requirement: for pip."""
        return (
            f"llama-cpp-python is not installed for {self.python}; install it into a virtual "
            f"environment with: pip install {requirement}, and name its interpreter with --python."
        )

    def call(self, **job: Any) -> str:
        path = self.folder / "job.json"
        path.write_text(json.dumps(job, default=str))
        done = subprocess.run(
            [self.python, "-P", str(CHILD), str(path)], capture_output=True, text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"llama.cpp failed on {job.get('model')}:\n{done.stderr[-2000:]}")
        return done.stdout

    def run(self, model: Path, rows: Sequence[Sequence[int]], **more: Any) -> dict[str, Any]:
        save = self.folder / "run.npz"
        n_ctx = more.pop("n_ctx", max(256, len(rows[0])))
        ids = [list(map(int, row)) for row in rows]
        self.call(op="run", model=model, rows=ids, n_ctx=n_ctx, save=save, **more)
        return dict(np.load(save))


def export(source: Path, file: Path, **more: Any) -> Path:
    regraft.export_gguf(source, file, overwrite=True, **more)
    return file
