"""A server with OpenAI's API around a small model, in a thread, which can be told to fail."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from evaluated import text_tokenizer
from models import LLAMA, save, weights

TEMPLATE = (
    "<s>{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
Fault = Callable[[int], "Reply | None"]  # number of the POST, from 1 -> a reply instead of ours


@dataclass(frozen=True)
class Reply:
    """A reply that the model does not give. wait: before it is sent."""

    status: int = 200
    body: bytes = b""
    location: str | None = None
    wait: threading.Event | None = None
    repeat: int = 1  # how often the body is sent


@dataclass(frozen=True)
class Abilities:
    """What a server understands. ids: prompts as token ids. scores: 'prompt_logprobs', 'echo',
    'echo without start' as llama-cpp-python has it, 'echo of the next token' by mistake. strict:
    refuses parameters that OpenAI's API does not have. chat: /chat/completions is all it has.
    prefill: continues an assistant's turn."""

    ids: bool = True
    scores: str | None = "prompt_logprobs"
    strict: bool = False
    chat: bool = False
    prefill: bool = False
    limit: int | None = 512


VLLM = Abilities()
SGLANG = Abilities(scores="echo")
LLAMA_CPP_PYTHON = Abilities(ids=False, scores="echo without start", limit=None)
LLAMA_SERVER = Abilities(scores=None, limit=None)


class ToyServer:
    """Serves the model of a folder as 'org/toy'."""

    def __init__(self, folder: Path, abilities: Abilities) -> None:
        self.abilities = abilities
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.fault: Fault = lambda number: None
        self.models: Reply | None = None  # instead of the list
        self._model = _load(folder)
        self._tokenizer = text_tokenizer()
        self._tokenizer.chat_template = TEMPLATE
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                entry = {"id": "org/toy", "max_model_len": server.abilities.limit}
                known = Reply(body=json.dumps({"data": [entry]}).encode())
                self._send((server.models or known) if self.path == "/v1/models" else Reply(404))

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.requests.append(request)
                    server.headers.append(self.headers)
                    reply = server.fault(len(server.requests))
                    reply = reply or server._reply(self.path, request)
                self._send(reply)

            def _send(self, reply: Reply) -> None:
                if reply.wait is not None:
                    reply.wait.wait(10)
                try:
                    self.send_response(reply.status)
                    if reply.location:
                        self.send_header("Location", reply.location)
                    self.end_headers()
                    for _ in range(reply.repeat):
                        self.wfile.write(reply.body)
                except OSError:  # the client has gone
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def _reply(self, path: str, request: dict[str, Any]) -> Reply:
        able = self.abilities
        if path != ("/v1/chat/completions" if able.chat else "/v1/completions"):
            return Reply(404)
        extra = {
            "repeat_penalty",
            "repetition_penalty",
            "prompt_logprobs",
            "continue_final_message",
        }
        if able.strict and extra & {*request}:
            return refusal(400, "unknown parameter")
        if request["model"] != "org/toy":
            return refusal(404, "no such model")
        if able.chat:
            ids = self._chat_ids(request)
        elif isinstance(request["prompt"], list):
            if not able.ids:
                return refusal(422, "prompt is not a string")
            ids = request["prompt"]
        else:
            ids = self._tokenizer(request["prompt"])["input_ids"]
        made = self._model.generate([ids], request["max_tokens"])[0]
        choice: dict[str, Any] = {}
        text = self._tokenizer.decode(made, skip_special_tokens=True)
        if able.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        if request.get("echo") and able.scores and able.scores.startswith("echo"):
            choice["logprobs"] = self._echo(ids, made)
        elif "logprobs" in request and able.scores:
            best = self._logprobs([*ids, *made])[len(ids) - 1 : -1].max(-1).values
            choice["logprobs"] = {"token_logprobs": best.tolist()}
        if "prompt_logprobs" in request and able.scores == "prompt_logprobs":
            choice["prompt_logprobs"] = self._prompt_logprobs(ids)
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(made)}
        return Reply(body=json.dumps({"choices": [choice], "usage": usage}).encode())

    def _chat_ids(self, request: dict[str, Any]) -> list[int]:
        messages = request["messages"]
        if messages[-1]["role"] == "assistant" and self.abilities.prefill:
            begun = messages.pop()["content"]
        else:
            begun = ""
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids: list[int] = self._tokenizer(text + begun, add_special_tokens=False)["input_ids"]
        return ids

    @torch.no_grad()
    def _logprobs(self, ids: list[int]) -> torch.Tensor:
        """[len(ids), V]: of every token after each position."""
        return self._model.head(self._model.hidden(torch.tensor([ids]))[0]).log_softmax(-1)

    def _echo(self, ids: list[int], made: list[int]) -> dict[str, Any]:
        whole = [*ids, *made]
        table = self._logprobs(whole)
        own: list[float | None] = [None]
        best: list[dict[str, float] | None] = [None]
        for row, token in zip(table, whole[1:], strict=False):
            own.append(float(row[token]))
            best.append({"best": float(row.max()), "own": float(row[token])})
        if self.abilities.scores == "echo without start":
            own, best = [None, *own[2:]], [None, *best[2:]]
        if self.abilities.scores == "echo of the next token":
            own, best = [None, *own[2:], -1.0], [None, *best[2:], {"best": -0.5}]
        return {"token_logprobs": own, "top_logprobs": best}

    def _prompt_logprobs(self, ids: list[int]) -> list[Any]:
        entries: list[Any] = [None]
        for row, token in zip(self._logprobs(ids), ids[1:], strict=False):
            top = int(row.argmax())
            entries.append(
                {str(t): {"logprob": float(row[t]), "decoded_token": "?"} for t in {top, token}}
            )
        return entries

    @contextmanager
    def running(self) -> Iterator[ToyServer]:
        """Answers requests inside the block."""
        thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()


@cache
def _load(folder: Path) -> Any:
    from regraft.evaluate.answers.model import Source

    return Source("toy", str(folder)).load(torch.device("cpu"))


def refusal(status: int, message: str) -> Reply:
    """A refusal in OpenAI's form."""
    return Reply(status, json.dumps({"error": {"message": message}}).encode())


def readable_toy(folder: Path, **config: Any) -> Path:
    """A random Llama of 512 tokens with the text tokenizer and a chat template."""
    settings = {
        **LLAMA, "vocab_size": 600, "bos_token_id": 0, "eos_token_id": 1,
        "max_position_embeddings": 512, **config,
    }  # fmt: skip
    tokenizer = text_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(save(folder, settings, weights(settings)))
    return folder
