"""POST to a URL that may contain secrets: no redirects, bounded replies, masked messages."""

from __future__ import annotations

import base64
import os
import queue
import re
import threading
from email.message import Message
from http.client import HTTPException
from typing import IO
from urllib.error import HTTPError
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from regraft.errors import InputError

KEYS = ("REGRAFT_JUDGE_KEY", "OPENAI_API_KEY")
LARGEST_REPLY = 1_000_000
"""Bytes."""
_TEMPORARY = (408, 409, 425, 429)  # worth another try, as are all from 500
# Usual segments of an API's path. Messages mask all others, since any of them may be a key.
_PUBLIC_SEGMENT = re.compile(
    r"v\d{1,2}(alpha|beta)?|api|openai|openapi|chat|completions|inference|models|deployments|engines"
)
_SHORTEST_SECRET = 4  # characters; masking shorter ones would make messages unreadable
_MASK = "***"


class EndpointError(Exception):
    """No reply. The message has no secrets and no line breaks. final: retrying cannot help."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(" ".join(message.split())[:200])
        self.final = final


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


class Endpoint:
    """An OpenAI-compatible /chat/completions. url: with or without that ending; its query is sent,
    and user:password in it becomes basic authorization. timeout: seconds for a whole reply.

    Raises InputError if `url` is not an http(s) URL.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.timeout = timeout
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = urlsplit(""), None, None
        if parts.scheme not in ("http", "https") or not host or re.search(r"[\s\x00-\x1f]", url):
            raise InputError("--judge is not an http:// or https:// URL.")
        address = f"[{host}]" if ":" in host else host
        address += f":{port}" if port else ""
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        self._url = urlunsplit((parts.scheme, address, f"{path}/chat/completions", parts.query, ""))
        self._authorization, secrets = "", []
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            encoded = base64.b64encode(pair.encode()).decode()
            self._authorization = f"Basic {encoded}"
            secrets += [pair, encoded, parts.username, parts.password or ""]
        private = [part for part in path.split("/") if not _PUBLIC_SEGMENT.fullmatch(part)]
        secrets += [*private, parts.query, *(value for _, value in parse_qsl(parts.query))]
        path = "/".join(part and (_MASK if part in private else part) for part in path.split("/"))
        self.masked_url = f"{parts.scheme}://{address}{path}{'?' + _MASK if parts.query else ''}"
        self._secrets = secrets

    def post(self, body: bytes) -> bytes:
        """The reply, at most a megabyte. Raises EndpointError if there is none in time."""
        outcome: queue.SimpleQueue[bytes | EndpointError] = queue.SimpleQueue()

        def work() -> None:
            try:
                outcome.put(self._post(body))
            except EndpointError as error:
                outcome.put(error)

        # in a thread, because a socket's own timeout starts again with every byte that arrives
        threading.Thread(target=work, daemon=True).start()
        try:
            result = outcome.get(timeout=self.timeout)
        except queue.Empty:
            raise EndpointError(f"timed out after {self.timeout:g} s") from None
        if isinstance(result, EndpointError):
            raise result
        return result

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := _key():
            headers["Authorization"] = f"Bearer {key}"
        elif self._authorization:
            headers["Authorization"] = self._authorization
        opener: OpenerDirector = build_opener(_NoRedirects)
        try:
            with opener.open(Request(self._url, body, headers), timeout=self.timeout) as reply:
                content = bytes(reply.read(LARGEST_REPLY + 1))
        except HTTPError as error:
            error.close()
            if 300 <= error.code < 400:
                message = f"HTTP {error.code}: it redirects, and the key is not sent elsewhere"
                raise EndpointError(message, final=True) from None
            final = error.code < 500 and error.code not in _TEMPORARY
            reason = self.mask(f"HTTP {error.code} {error.reason}")
            raise EndpointError(reason, final=final) from None
        except (OSError, HTTPException, ValueError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            raise EndpointError(self.mask(reason)) from None
        if len(content) > LARGEST_REPLY:
            raise EndpointError("the reply is larger than 1 MB", final=True)
        return content

    def mask(self, text: str) -> str:
        """`text` with every secret replaced by '***'."""
        key = _key()
        for secret in sorted([*self._secrets, *([key] if key else [])], key=len, reverse=True):
            for form in (secret, unquote(secret), quote(secret, safe="")):
                if len(form) >= _SHORTEST_SECRET:
                    text = text.replace(form, _MASK)
        return text


def _key() -> str | None:
    return next(filter(None, map(os.environ.get, KEYS)), None)
