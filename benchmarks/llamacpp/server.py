"""llama-cpp-python's server with one model, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llamacpp.runner import CHILD, Llama

START = 120  # seconds that a server may take to load


class Server:
    """A server of `model` as `alias`. n_ctx: tokens of a prompt and its reply."""

    def __init__(
        self, llama: Llama, model: Path, port: int, *, alias: str = "smollm", n_ctx: int = 512
    ) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self.python, self.path = llama.python, llama.folder / f"serve-{model.stem}.json"
        self.job = {"op": "serve", "model": str(model), "alias": alias, "n_ctx": n_ctx,
                    "port": port}  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.path.write_text(json.dumps(self.job))
        with self.path.with_suffix(".log").open("wb") as log:
            self.process = subprocess.Popen(
                [self.python, "-P", str(CHILD), str(self.path)], stdout=log, stderr=log,
                env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            )  # fmt: skip
        for _ in range(START):
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"{self.url}/models", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        raise SystemExit(self.path.with_suffix(".log").read_text()[-2000:])

    def stop(self) -> None:
        """Kill it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start it for the block."""
        self.start()
        try:
            yield
        finally:
            self.stop()
