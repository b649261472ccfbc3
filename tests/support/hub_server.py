"""A tiny Hub on the loopback: the endpoints huggingface_hub uses to list and download a model.

`HubServer(repos)` serves folders as repositories and keeps a log of what was asked for. Clients are
processes started with `server.env(cache)`, because HF_ENDPOINT is read at import.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class HubServer:
    """repos: 'org/name' -> folder. gated: names that answer 403 as a gated repository does;
    down: names that answer 503 to everything (more can be added at any time). hostile: name ->
    content of files that every repository lists besides its own, whatever the name.

    log: every request as (method, path, Range header or None).
    """

    def __init__(
        self,
        repos: dict[str, Path],
        *,
        gated: tuple[str, ...] = (),
        down: tuple[str, ...] = (),
        hostile: dict[str, bytes] | None = None,
        handler: type[HubHandler] | None = None,
    ) -> None:
        self.repos, self.gated, self.down = repos, gated, [*down]
        self.hostile = hostile or {}
        self.log: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(handler or HubHandler):
            server_state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def env(self, cache: Path, **more: str) -> dict[str, str]:
        """Environment of a client process with this Hub and its own cache."""
        proxies = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith("HF_") and k.lower() not in proxies
        }
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def downloads(self) -> list[str]:
        """Files whose whole content was sent, in order."""
        return [
            path.partition(f"/resolve/{COMMIT}/")[2] or path.partition("/resolve/main/")[2]
            for method, path, asked in self.log
            if method == "GET" and "/resolve/" in path and asked is None
        ]

    def ranges(self) -> list[str]:
        """Files of which a range was sent, in order."""
        return [
            path.partition(f"/resolve/{COMMIT}/")[2]
            for method, path, asked in self.log
            if method == "GET" and "/resolve/" in path and asked is not None
        ]


class HubHandler(BaseHTTPRequestHandler):
    server_state: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        hub = self.server_state
        path = unquote(urlsplit(self.path).path)
        hub.log.append((self.command, path, self.headers.get("Range")))
        if any(name in path for name in hub.down):
            return self._send(503, b"down", body)
        repo = r"/api/(?:models|datasets)/([^/]+/[^/]+)"
        api = re.fullmatch(repo + r"(?:/revision/([^/]+))?", path)
        tree = re.fullmatch(repo + r"/tree/([^/]+)(?:/(.*))?", path)
        resolve = re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = tree or api or resolve
        if match is None or match[1] not in hub.repos:
            return self._fail("RepoNotFound", 401, body)
        if match[1] in hub.gated and resolve:
            return self._fail("GatedRepo", 403, body)
        if (match[2] or "main") not in ("main", COMMIT):
            return self._fail("RevisionNotFound", 404, body)
        folder = hub.repos[match[1]]
        if tree or api:
            names = sorted(
                p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()
            )
            names += hub.hostile
            if tree:
                sizes = {name: len(hub.hostile.get(name, b"")) for name in names}
                sizes |= {n: (folder / n).stat().st_size for n in names if n not in hub.hostile}
                entries = [
                    {"type": "file", "path": name, "size": size, "oid": "0" * 40}
                    for name, size in sizes.items()
                ]
                data = json.dumps(entries).encode()
                return self._send(200, data, body, kind="application/json")
            info = {
                "id": match[1],
                "sha": COMMIT,
                "private": False,
                "siblings": [{"rfilename": name} for name in names],
            }
            return self._send(200, json.dumps(info).encode(), body, kind="application/json")
        assert resolve is not None
        file = folder / resolve[3]
        if resolve[3] in hub.hostile:
            data = hub.hostile[resolve[3]]
        elif file.is_file():
            data = file.read_bytes()
        else:
            return self._fail("EntryNotFound", 404, body)
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self._send(200, data, body, headers=headers)
        first = int(asked[1])
        last = min(int(asked[2] or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._send(206, data[first : last + 1], body, headers=headers)

    def _fail(self, code: str, status: int, body: bool) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        self._send(status, b"{}", body, headers=headers)

    def _send(
        self,
        status: int,
        data: bytes,
        body: bool,
        *,
        kind: str = "application/octet-stream",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)
