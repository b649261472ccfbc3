"""A server of /v1/chat/completions with the replies that a test sets, and a judge that uses it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from regraft.evaluate.answers.judge import Judge

Reply = Callable[[dict[str, Any]], tuple[int, str]]  # (status, text) to a request


class JudgeServer:
    """Serves /v1/chat/completions; `reply` makes the reply."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.paths: list[str] = []
        self.reply: Reply = lambda request: (200, chat("Yes."))
        self.stream: Callable[[Callable[[bytes], Any]], None] | None = None  # instead of a text
        self.location = self.reason = None
        self.any_path = False
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                request = json.loads(self.rfile.read(size))
                endpoint.requests.append(request)
                endpoint.headers.append(self.headers)
                endpoint.paths.append(self.path)
                known = endpoint.any_path or self.path == "/v1/chat/completions"
                status, text = endpoint.reply(request) if known else (404, "")
                self.send_response(status, endpoint.reason)
                if endpoint.location:
                    self.send_header("Location", endpoint.location)
                self.end_headers()
                try:
                    if endpoint.stream:
                        endpoint.stream(self.wfile.write)
                    else:
                        self.wfile.write(text.encode())
                except OSError:  # the client has closed the connection
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[JudgeServer]:
        """A server that answers until the block ends."""
        server = cls()
        thread = threading.Thread(target=server.server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.server.shutdown()
        server.server.server_close()
        thread.join()

    def prompts(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.requests]


def chat(text: str) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def in_order(*replies: tuple[int, str]) -> Reply:
    left = iter(replies)
    return lambda request: next(left)


def make_judge(endpoint: JudgeServer, **settings: Any) -> Judge:
    return Judge(endpoint.url, "judge-1", pause=0.001, **settings)
