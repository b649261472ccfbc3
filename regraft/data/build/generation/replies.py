"""Replies of an OpenAI-compatible endpoint, each kept in a file so that it is asked for once.

The key is read from REGRAFT_REPHRASE_KEY or else OPENAI_API_KEY. A reply's file is named by the
hash of everything that it depends on: the model, the prompt and the settings, not the URL. So a
killed or repeated build sends no prompt twice, and gives the same text though the model draws at
random.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from regraft.endpoint import Endpoint, EndpointError, run_at_once
from regraft.errors import InputError, RegraftError
from regraft.input_files import read_json_object
from regraft.write import json_text, write_text

KEYS = ("REGRAFT_REPHRASE_KEY", "OPENAI_API_KEY")
_FATAL = (401, 403, 404)  # of every request


class Replies:
    """Chat completions of one model with one set of settings.

    url: with or without /chat/completions. folder: of the replies. timeout: seconds for a reply.
    requests: under way at once. tries, pause: how often a busy endpoint is asked, and the pauses of
    1, 2, 4 ... times `pause` seconds between.

    Raises InputError if `url` is not an http(s) URL.
    """

    def __init__(
        self, url: str, model: str, folder: Path, *, temperature: float, most: int,
        timeout: float, requests: int, tries: int = 6, pause: float = 1.0,
    ) -> None:  # fmt: skip
        self._endpoint = Endpoint(url, timeout, option="rephrase: url", keys=KEYS)
        self._settings = {"model": model, "temperature": temperature, "max_tokens": most}
        self._folder, self._requests = folder, requests
        self._tries, self._pause = tries, pause

    def check(self) -> None:
        """Ask for one token. Raises InputError if the endpoint does not answer."""
        try:
            self._ask("Say yes.", {**self._settings, "max_tokens": 1}, tries=2)
        except EndpointError as error:
            raise InputError(
                f"The endpoint at {self._endpoint.masked_url} does not answer ({error}); "
                f"check url, model and {KEYS[0]}."
            ) from None

    def answer(self, prompts: Iterable[str]) -> list[str | None]:
        """The reply to each prompt; None where the endpoint refuses this prompt.

        Raises RegraftError if the endpoint stops answering; replies that have arrived are kept.
        """
        asked = list(prompts)
        replies: dict[str, str | None] = {}
        missing = []
        for prompt in dict.fromkeys(asked):
            if (path := self._path(prompt)).is_file():
                replies[prompt] = read_json_object(path, remedy="remove it")["reply"]
            else:
                missing.append(prompt)
        try:
            for prompt, reply in self._request(missing):
                replies[prompt] = reply
                self._store(prompt, reply)
        except EndpointError as error:
            raise RegraftError(
                f"The endpoint at {self._endpoint.masked_url} does not answer ({error}); replies "
                f"are kept in {self._folder}, and the same command with --resume asks for the rest."
            ) from None
        return [replies[prompt] for prompt in asked]

    def _request(self, prompts: list[str]) -> Iterator[tuple[str, str | None]]:
        works = ((prompt, partial(self._reply, prompt)) for prompt in prompts)
        return run_at_once(works, self._requests)

    def _reply(self, prompt: str) -> str | None:
        try:
            return self._ask(prompt, self._settings, self._tries)
        except EndpointError as error:
            if error.final and error.status is not None and error.status not in _FATAL:
                return None
            raise

    def _ask(self, prompt: str, settings: dict[str, object], tries: int) -> str:
        body = {"messages": [{"role": "user", "content": prompt}], **settings}
        text = self._endpoint.ask(
            "chat/completions", json.dumps(body).encode(),
            lambda reply: str(reply["choices"][0]["message"]["content"] or ""),
            what="a chat completion", tries=tries, pause=self._pause,
        )  # fmt: skip
        return self._endpoint.mask(text)

    def _path(self, prompt: str) -> Path:
        key = json.dumps([prompt, self._settings], sort_keys=True)
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.json"

    def _store(self, prompt: str, reply: str | None) -> None:
        """Write the reply's file at once; a refusal is asked again by another build."""
        if reply is None:
            return
        path = self._path(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        write_text(part, json_text({"prompt": prompt, **self._settings, "reply": reply}))
        part.rename(path)
