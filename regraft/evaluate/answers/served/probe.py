"""What a server understands, found out by a few short requests before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from regraft.endpoint import Endpoint, EndpointError
from regraft.errors import InputError
from regraft.evaluate.answers.served.protocol import (
    Protocol,
    Scored,
    Scores,
    encode_body,
    read_count,
    read_generated,
    read_scores,
    to_text,
)
from regraft.evaluate.prompts.length import Prompter
from regraft.input_files import JsonObject

Reading = TypeVar("Reading")
TRIES, PAUSE = 2, 1.0
_NO_ROUTE = (404, 405, 501)
_NO_ACCESS = (401, 403)
_NOISE = 0.1  # nats
_GENERATED = (4, 1)  # tokens
_LISTED = 5  # names in a message


def find_model(endpoint: Endpoint, model: str) -> int | None:
    """The most tokens that the model takes, prompt and answer; None if the server does not say.

    Raises InputError if the server is not there or does not list the model.
    """

    def read(reply: Any) -> JsonObject:
        return {str(entry["id"]): entry.get("max_model_len") for entry in reply["data"]}

    try:
        listed = endpoint.ask("models", None, read, what="a list of models", tries=TRIES,
                              pause=PAUSE)  # fmt: skip
    except EndpointError as error:
        if error.status in _NO_ROUTE:
            return None
        raise _no_answer(endpoint, error) from None
    if model not in listed:
        names = endpoint.mask(", ".join(list(listed)[:_LISTED])) or "none"
        raise InputError(
            f"The endpoint at {endpoint.masked_url} has no model '{model}' (it has {names}); give "
            "the name that it has as --endpoint-model."
        )
    limit = listed[model]
    return limit if isinstance(limit, int) else None


def find_protocol(
    endpoint: Endpoint, model: str, prompter: Prompter, prompt: str, *, chat: bool
) -> Protocol:
    """How the server takes prompts and whether it gives their log-probabilities.

    prompt: an example, with the beginning of its answer. chat: ask /chat/completions. Raises
    InputError if the server does not answer, and if it finds other tokens in a text than the
    prompter.
    """
    probe = _Probe(endpoint, model, prompter, prompter.ids(prompt))
    protocol = probe.prompts(chat)
    if protocol.is_chat:
        return protocol
    for scores in ("prompt_logprobs", "echo"):
        if scoring := probe.scores(protocol, scores):
            return scoring
    return protocol


class _Probe:
    """One prompt, sent in every form."""

    def __init__(
        self, endpoint: Endpoint, model: str, prompter: Prompter, ids: Sequence[int]
    ) -> None:
        self.endpoint, self.model, self.prompter = endpoint, model, prompter
        self.ids = list(ids)
        self.start: int | None = prompter.tokenizer.bos_token_id

    def prompts(self, chat: bool) -> Protocol:
        """The first form of prompt that the server takes."""
        refusal: EndpointError | None = None
        other: int | None = None
        for protocol in self._forms(chat):
            try:
                count = self._send(protocol, protocol.generate, read_count, most=1)
            except EndpointError as error:
                if error.status is None or error.status in _NO_ACCESS:
                    raise _no_answer(self.endpoint, error) from None
                refusal = refusal or error
                continue
            if count in (None, len(self.ids)) or protocol.prompts == "messages":
                if protocol.prompts == "token ids":
                    self._check_tokenizer(protocol)
                return protocol
            other = count
        if other is not None:
            raise self._other_tokenizer(other)
        assert refusal is not None
        raise _no_answer(self.endpoint, refusal) from None

    def scores(self, protocol: Protocol, scores: Scores) -> Protocol | None:
        """The protocol with these log-probabilities; None if the server does not give them, or if
        they contradict what it generates."""
        protocol = replace(protocol, scores=scores)
        try:
            own = self._scores(protocol, self.ids)
            if set(own) not in (positions := {*range(1, len(self.ids))}, positions - {1}):
                return None
            if not self._agree(protocol):
                return None
        except EndpointError as error:
            if error.status is None and not error.unreadable:
                raise _no_answer(self.endpoint, error) from None
            return None
        return replace(protocol, first=min(own))

    def _agree(self, protocol: Protocol) -> bool:
        """Whether most tokens have the same log-probability when they are generated as when they
        are part of a prompt, where a server may give that of the next token. All need not: numbers
        in bfloat16 differ from batch to batch."""
        text = to_text(self.prompter, self.ids)
        for most in _GENERATED:
            request = protocol.generate(self.model, self.prompter, self.ids, most)
            body = encode_body({**request, "logprobs": 1})
            more, logprobs = self._ask(protocol, body, read_generated, tries=1)
            longer = self.prompter.ids(text + more)
            if longer[: len(self.ids)] != self.ids or len(longer) - len(self.ids) != len(logprobs):
                continue  # other tokens have the same text
            scored = self._scores(protocol, longer)
            agree = [
                scored[at][1] and abs(scored[at][0] + logprob) < _NOISE
                for at, logprob in enumerate(logprobs, len(self.ids))
            ]
            return sum(agree) > len(agree) / 2
        return True

    def _scores(self, protocol: Protocol, ids: Sequence[int]) -> Scored:
        scores = protocol.scores
        assert scores is not None
        body = encode_body(protocol.score(self.model, self.prompter, ids))
        return self._ask(
            protocol, body, lambda reply: read_scores(reply, ids, scores, self.start), tries=1
        )

    def _send(
        self,
        protocol: Protocol,
        make: Callable[[str, Prompter, Sequence[int], int], JsonObject],
        read: Callable[[Any], Reading],
        *,
        most: int,
    ) -> Reading:
        return self._ask(
            protocol, encode_body(make(self.model, self.prompter, self.ids, most)), read
        )

    def _ask(
        self,
        protocol: Protocol,
        body: bytes,
        read: Callable[[Any], Reading],
        tries: int = TRIES,
    ) -> Reading:
        return self.endpoint.ask(
            protocol.route, body, read, what="a completion", tries=tries, pause=PAUSE
        )

    def _forms(self, chat: bool) -> Iterator[Protocol]:
        starts = self.ids[0] == self.start
        for strict in (False, True):
            if chat:
                yield Protocol("messages with the answer begun", strict=strict)
                yield Protocol("messages", strict=strict)
            else:
                yield Protocol("token ids", strict=strict)
                if starts:
                    yield Protocol("text", adds_start=True, strict=strict)
                yield Protocol("text", strict=strict)

    def _check_tokenizer(self, protocol: Protocol) -> None:
        """Raise InputError if the server finds other tokens in the prompt's text. It may add a
        start token or not."""
        try:
            form = replace(protocol, prompts="text", adds_start=self.ids[0] == self.start)
            count = self._send(form, form.generate, read_count, most=1)
        except EndpointError:
            return
        if count is not None and abs(count - len(self.ids)) > 1:
            raise self._other_tokenizer(count)

    def _other_tokenizer(self, count: int) -> InputError:
        return InputError(
            f"The endpoint at {self.endpoint.masked_url} finds {count} tokens in a text in which "
            f"the tokenizer {self.prompter.tokenizer.name_or_path} finds {len(self.ids)}; give "
            "the folder of its model's tokenizer as --tokenizer."
        )


def _no_answer(endpoint: Endpoint, error: EndpointError) -> InputError:
    return InputError(
        f"The endpoint at {endpoint.masked_url} does not answer ({error}); check --endpoint, "
        f"--endpoint-model and {endpoint.keys[0]}."
    )
