"""Requests to a URL that may contain secrets: no redirects, bounded replies, masked messages."""

from __future__ import annotations

import base64
import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from email.message import Message
from http.client import HTTPException
from typing import IO, Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from regraft.errors import InputError

Reading = TypeVar("Reading")
Key = TypeVar("Key")
Result = TypeVar("Result")
LARGEST_REPLY = 1_000_000
"""Bytes."""
_TEMPORARY = (408, 409, 425, 429)  # worth another try, as are all from 500
# Usual segments of an API's path. Messages mask all others, since any of them may be a key.
_PUBLIC_SEGMENT = re.compile(
    r"v\d{1,2}(alpha|beta)?|api|openai|openapi|chat|completions|inference|models|deployments|engines"
)
_SHORTEST_SECRET = 4  # characters; masking shorter ones would make messages unreadable
_MASK = "***"
_ENDINGS = ("/chat/completions", "/completions")
_MOST_TIMEOUTS = 2
_LONGEST_REASON = 10_000  # bytes of the reply to a refused request


class EndpointError(Exception):
    """No reply, or none of use. The message has no secrets and no line breaks. final: retrying
    cannot help; status: of the HTTP reply that refused; unreadable: there was another reply;
    timed_out: there was none in time."""

    def __init__(
        self,
        message: str,
        *,
        final: bool = False,
        status: int | None = None,
        unreadable: bool = False,
        timed_out: bool = False,
    ) -> None:
        super().__init__(" ".join(message.split())[:200])
        self.final, self.status = final, status
        self.unreadable, self.timed_out = unreadable, timed_out


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


class Endpoint:
    """An OpenAI-compatible API. url: with or without /chat/completions or /completions; its query
    is sent, and user:password in it becomes basic authorization. timeout: seconds for a whole
    reply. option: where the user gave the URL; keys: environment variables that may hold the key.

    Raises InputError if `url` is not an http(s) URL.
    """

    def __init__(self, url: str, timeout: float, *, option: str, keys: Sequence[str]) -> None:
        self.timeout, self.keys = timeout, tuple(keys)
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = urlsplit(""), None, None
        if parts.scheme not in ("http", "https") or not host or re.search(r"[\s\x00-\x1f]", url):
            raise InputError(f"{option} is not an http:// or https:// URL.")
        address = f"[{host}]" if ":" in host else host
        address += f":{port}" if port else ""
        path = parts.path.rstrip("/")
        for ending in _ENDINGS:
            path = path.removesuffix(ending)
        self._scheme, self._address, self._path = parts.scheme, address, path
        self._query = parts.query
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

    def ask(
        self,
        route: str,
        body: bytes | None,
        read: Callable[[Any], Reading],
        *,
        what: str,
        tries: int,
        pause: float,
        largest: int = LARGEST_REPLY,
    ) -> Reading:
        """`read` of the reply's JSON, which is to be `what`. body: None for a GET request.

        A busy or unreachable endpoint is asked up to `tries` times, with pauses of 1, 2, 4 ...
        times `pause` seconds; one that lets two requests time out is not. Raises EndpointError if
        there is no reply, or none that can be read.
        """
        timeouts = 0
        for attempt in range(tries):
            if attempt:
                time.sleep(pause * 2 ** (attempt - 1))
            try:
                return read(json.loads(self.request(route, body, largest)))
            except EndpointError as error:
                failure = error
                timeouts += error.timed_out
                if error.final or timeouts == _MOST_TIMEOUTS:
                    break
            except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
                failure = EndpointError(f"the reply is not {what}", unreadable=True)
        raise failure

    def request(self, route: str, body: bytes | None, largest: int = LARGEST_REPLY) -> bytes:
        """The reply, of at most `largest` bytes. Raises EndpointError if there is none in time."""
        outcome: queue.SimpleQueue[bytes | EndpointError] = queue.SimpleQueue()

        def work() -> None:
            try:
                outcome.put(self._request(route, body, largest))
            except EndpointError as error:
                outcome.put(error)

        # in a thread, because a socket's own timeout starts again with every byte that arrives
        threading.Thread(target=work, daemon=True).start()
        try:
            result = outcome.get(timeout=self.timeout)
        except queue.Empty:
            message = f"timed out after {self.timeout:g} s"
            raise EndpointError(message, timed_out=True) from None
        if isinstance(result, EndpointError):
            raise result
        return result

    def _request(self, route: str, body: bytes | None, largest: int) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        elif self._authorization:
            headers["Authorization"] = self._authorization
        path = f"{self._path}/{route}"
        url = urlunsplit((self._scheme, self._address, path, self._query, ""))
        opener: OpenerDirector = build_opener(_NoRedirects)
        try:
            # the wait for this thread ends first, and says so
            with opener.open(Request(url, body, headers), timeout=2 * self.timeout) as reply:
                content = bytes(reply.read(largest + 1))
        except HTTPError as error:
            if 300 <= error.code < 400:
                error.close()
                message = f"HTTP {error.code}: it redirects, and the key is not sent elsewhere"
                raise EndpointError(message, final=True, status=error.code) from None
            final = error.code < 500 and error.code not in _TEMPORARY
            reason = self.mask(f"HTTP {error.code} {error.reason}{_explanation(error)}")
            raise EndpointError(reason, final=final, status=error.code) from None
        except (OSError, HTTPException, ValueError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            raise EndpointError(self.mask(reason)) from None
        if len(content) > largest:
            size = f"{largest / 1e6:.3g} MB"
            raise EndpointError(f"the reply is larger than {size}", final=True)
        return content

    def mask(self, text: str) -> str:
        """`text` with every secret replaced by '***', and what UTF-8 cannot write by '?'."""
        text = text.encode("utf-8", "replace").decode()
        key = self._key()
        for secret in sorted([*self._secrets, *([key] if key else [])], key=len, reverse=True):
            for form in (secret, unquote(secret), quote(secret, safe="")):
                if len(form) >= _SHORTEST_SECRET:
                    text = text.replace(form, _MASK)
        return text

    def _key(self) -> str | None:
        return next(filter(None, map(os.environ.get, self.keys)), None)


def run_at_once(
    works: Iterable[tuple[Key, Callable[[], Result]]], most: int
) -> Iterator[tuple[Key, Result]]:
    """(key, result) of each work as it is done; at most `most` are under way at once.

    After an exception no work is started; results that are there come first, then it is raised.
    Works run in daemon threads, so an interrupted command does not wait for them.
    """
    done: queue.SimpleQueue[tuple[Key, Result | Exception]] = queue.SimpleQueue()

    def run(key: Key, work: Callable[[], Result]) -> None:
        try:
            done.put((key, work()))
        except Exception as error:  # it is raised in the caller's thread
            done.put((key, error))

    waiting, under_way = iter(works), 0
    failed: Exception | None = None
    while True:
        while failed is None and under_way < most and (next_one := next(waiting, None)):
            threading.Thread(target=run, args=next_one, daemon=True).start()
            under_way += 1
        if not under_way or (failed is not None and done.empty()):
            break
        key, result = done.get()
        under_way -= 1
        if isinstance(result, Exception):
            failed = failed or result
        else:
            yield key, result
    if failed is not None:
        raise failed


def _explanation(error: HTTPError) -> str:
    """': ' and the message in the body of a refusal, in OpenAI's form; '' where there is none."""
    try:
        with error:
            reply = json.loads(error.read(_LONGEST_REASON))
            message = reply.get("error", reply)["message"]
    except (
        OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError, RecursionError,
    ):  # fmt: skip
        return ""
    return f": {message}" if isinstance(message, str) else ""
