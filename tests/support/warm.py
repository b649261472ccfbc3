"""A process with the imports done that runs jobs given as lines of its standard input."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, ClassVar


class WarmProcess:
    """Runs `script` once and asks it line by line. A context manager."""

    script: ClassVar[str]

    def __enter__(self) -> Any:
        self._process = subprocess.Popen(
            [sys.executable, self.script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def ask(self, line: str) -> str:
        """The line that the process answers; '' where it has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()
