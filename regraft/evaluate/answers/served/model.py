"""A served model that scores and continues token ids, by many requests at once.

It takes the place of `answers.model.LanguageModel`. Every answer is written to a file as soon as it
arrives, so a resumed run asks for nothing twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from regraft.endpoint import LARGEST_REPLY, Endpoint, EndpointError, run_at_once
from regraft.errors import RegraftError
from regraft.evaluate.answers.served.protocol import (
    Protocol,
    encode_body,
    read_scores,
    read_text,
)
from regraft.evaluate.prompts.length import Prompter
from regraft.line_file import LineFile
from regraft.parallel import Mesh

TRIES, PAUSE = 6, 1.0
_BYTES_A_TOKEN = 512
"""In a reply with log-probabilities: the token's text twice, its numbers and its neighbour's."""


class Entry(TypedDict, total=False):
    """A line of the file of answers: the question's key, and its text or its scores at the
    positions (NLL in nats, whether the token is the likeliest)."""

    key: str
    text: str
    nll: list[float]
    hits: list[bool]


@dataclass(frozen=True)
class _Question:
    """ids: of the prompt. positions: where to score it; None: continue it by `most` tokens."""

    ids: Sequence[int]
    positions: Sequence[int] | None = None
    most: int = 0

    @property
    def key(self) -> str:
        """The question in the file of answers."""
        parts = json.dumps([list(self.ids), self.positions and list(self.positions), self.most])
        return hashlib.sha256(parts.encode()).hexdigest()


class ServedModel:
    """A model behind an endpoint. model: its name there; requests: how many are under way at once;
    path: of the file with its answers; count: is called with (answers, questions) of those that are
    asked together.

    Its methods raise RegraftError if the endpoint stops answering.
    """

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        model: str,
        protocol: Protocol,
        prompter: Prompter,
        requests: int,
        path: Path,
        count: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.name, self.mesh = name, Mesh()
        self.start: int | None = prompter.tokenizer.bos_token_id
        self._endpoint, self._model, self._protocol = endpoint, model, protocol
        self._prompter, self._requests, self._count = prompter, requests, count
        self._file = LineFile(path)
        entries = cast("list[Entry]", self._file.entries)
        self._answers = {entry["key"]: entry for entry in entries}

    def score(
        self, texts: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """For each text (float32 NLL in nats, whether the token is the likeliest) at each of its
        `positions`, which are 1 or more."""
        questions = [_Question(*pair) for pair in zip(texts, positions, strict=True)]
        return [
            (torch.tensor(entry["nll"]), torch.tensor(entry["hits"]))
            for entry in self._answer(questions)
        ]

    def generate(self, prompts: Sequence[Sequence[int]], most: int) -> list[str]:
        """Greedy continuations of at most `most` tokens, without the stop token."""
        entries = self._answer([_Question(prompt, most=most) for prompt in prompts])
        return [entry["text"] for entry in entries]

    def _answer(self, questions: Sequence[_Question]) -> list[Entry]:
        keys = [question.key for question in questions]
        missing = {
            key: question
            for key, question in zip(keys, questions, strict=True)
            if key not in self._answers
        }
        # requests are written in this thread: a tokenizer is not safe in several
        requests = ((key, self._request(question)) for key, question in missing.items())
        try:
            for done, (key, entry) in enumerate(run_at_once(requests, self._requests), 1):
                self._count(len(keys) - len(missing) + done, len(keys))
                self._answers[key] = {"key": key, **entry}
                self._file.append(self._answers[key])
        except EndpointError as error:
            raise RegraftError(
                f"The endpoint at {self._endpoint.masked_url} does not answer ({error}); "
                f"{len(self._answers)} of {self.name}'s answers are kept, and the same command "
                "with --resume asks for the others."
            ) from None
        return [self._answers[key] for key in keys]

    def _request(self, question: _Question) -> Callable[[], Entry]:
        protocol, ids, positions = self._protocol, question.ids, question.positions
        if positions is None:
            request = protocol.generate(self._model, self._prompter, ids, question.most)
            largest = LARGEST_REPLY
        else:
            request = protocol.score(self._model, self._prompter, ids)
            largest = LARGEST_REPLY + _BYTES_A_TOKEN * len(ids)

        def read(reply: Any) -> Entry:
            if positions is None:
                return {"text": self._endpoint.mask(read_text(reply))}
            assert protocol.scores is not None, "what needs log-probabilities is left out"
            scored = read_scores(reply, ids, protocol.scores, self.start)
            return {
                "nll": [scored[at][0] for at in positions],
                "hits": [scored[at][1] for at in positions],
            }

        return partial(
            self._endpoint.ask, protocol.route, encode_body(request), read, what="a completion",
            tries=TRIES, pause=PAUSE, largest=largest,
        )  # fmt: skip
