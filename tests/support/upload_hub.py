"""The local Hub with the endpoints by which huggingface_hub uploads a model."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import unquote, urlsplit

from hub_server import COMMIT, HubHandler, HubServer


class UploadHub(HubServer):
    """existing: 'org/name' -> whether it is private. forbidden: names that answer 403.

    objects: SHA-256 -> bytes of the large files received; commits: of each repository the files by
    name; tokens: those of the requests. drop_after: number of large files after which every
    further one fails (None: none fails).
    """

    def __init__(
        self,
        existing: dict[str, bool] | None = None,
        *,
        forbidden: tuple[str, ...] = (),
        drop_after: int | None = None,
    ) -> None:
        super().__init__({}, handler=_Uploads)
        self.existing = dict(existing or {})
        self.forbidden, self.drop_after = forbidden, drop_after
        self.objects: dict[str, bytes] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.tokens: set[str] = set()


class _Uploads(HubHandler):
    server_state: UploadHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/.+)?", path)
        if match is None or match[1] not in self.server_state.existing:
            return self._fail("RepoNotFound", 401, True)
        private = self.server_state.existing[match[1]]
        return self._reply({"id": match[1], "sha": COMMIT, "private": private, "siblings": []})

    def do_PUT(self) -> None:
        hub, body = self.server_state, self._body()
        if hub.drop_after is not None and len(hub.objects) >= hub.drop_after:
            return self._send(400, b"", True)  # 500 is tried again for half a minute
        hub.objects[hashlib.sha256(body).hexdigest()] = body
        return self._send(200, b"", True)

    def do_POST(self) -> None:
        hub, path = self.server_state, unquote(urlsplit(self.path).path)
        body = self._body()
        hub.log.append(("POST", path, None))
        hub.tokens.add(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if path == "/api/validate-yaml":
            return self._reply({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            files = [
                {"path": file["path"], "shouldIgnore": False, "oid": None,
                 "uploadMode": "lfs" if _is_large(file["path"]) else "regular"}
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            return self._reply({"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            return self._reply({"objects": [self._object(o) for o in json.loads(body)["objects"]]})
        match = re.fullmatch(r"/api/models/(.+)/commit/main", path)
        assert match, path
        return self._commit(match[1], body)

    def _create(self, request: dict[str, Any]) -> None:
        hub = self.server_state
        name = f"{request.get('organization')}/{request['name']}"
        if name in hub.forbidden:
            return self._fail("Forbidden", 403, True)
        if name in hub.existing:
            known = json.dumps({"url": f"{hub.endpoint}/{name}", "id": name}).encode()
            return self._send(409, known, True, kind="application/json")
        hub.existing[name] = request.get("private", request.get("visibility") == "private")
        return self._reply({"url": f"{hub.endpoint}/{name}", "name": name, "id": name})

    def _object(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["oid"] in self.server_state.objects:
            return dict(request)
        href = f"{self.server_state.endpoint}/storage/{request['oid']}"
        return {**request, "actions": {"upload": {"href": href}}}

    def _commit(self, name: str, body: bytes) -> None:
        hub = self.server_state
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
        hub.commits[name] = files
        url = f"{hub.endpoint}/{name}/commit/{COMMIT}"
        return self._reply(
            {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""}
        )

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _reply(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), True, kind="application/json")


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".png", ".gguf"))
