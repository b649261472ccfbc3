"""A served model among the models of an evaluation: its name, and what its server can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regraft import progress
from regraft.endpoint import Endpoint
from regraft.errors import InputError
from regraft.evaluate.answers.model import folder_name
from regraft.evaluate.answers.served.model import ServedModel
from regraft.evaluate.answers.served.probe import find_model, find_protocol
from regraft.evaluate.answers.served.protocol import Protocol
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.result import EndpointRecord
from regraft.evaluate.settings import Settings
from regraft.evaluate.tasks import Scoring

KEYS = ("REGRAFT_ENDPOINT_KEY", "OPENAI_API_KEY")
_CHAT = "/chat/completions"


@dataclass(frozen=True)
class ServedSource:
    """name: in the report. model: its name at the endpoint. limit: the most tokens that it takes,
    None if unknown. unsupported: tasks and measures that its server cannot be used for."""

    name: str
    model: str
    endpoint: Endpoint
    protocol: Protocol
    limit: int | None
    requests: int
    unsupported: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name of the folder with its answers."""
        return folder_name(self.name)

    @property
    def location(self) -> str:
        """Model and URL, without secrets."""
        return f"{self.model} at {self.endpoint.masked_url}"

    def identity(self) -> list[Any]:
        """What changes the answers, as JSON."""
        return [self.location, asdict(self.protocol)]

    def connect(
        self, prompter: Prompter, folder: Path, count: Callable[[int, int], None]
    ) -> ServedModel:
        """The model. folder: where the file with its answers is, which a resumed run finds; count:
        is called with (answers, questions) of those that are sent together."""
        return ServedModel(
            self.name, self.endpoint, self.model, self.protocol, prompter, self.requests,
            folder / f"served-{self.folder}.jsonl", count,
        )  # fmt: skip

    def record(self) -> EndpointRecord:
        """What a result says of the endpoint."""
        return EndpointRecord(
            url=self.endpoint.masked_url,
            model=self.model,
            prompts=self.protocol.prompts,
            scores=self.protocol.scores,
            unsupported=list(self.unsupported),
        )


@dataclass(frozen=True)
class Address:
    """An endpoint that the user named, before the first request. chat: at /chat/completions."""

    name: str
    model: str
    endpoint: Endpoint
    chat: bool
    requests: int

    @property
    def folder(self) -> str:
        """The name of the folder with the model's answers."""
        return folder_name(self.name)

    def find(self) -> int | None:
        """The most tokens that the model takes, if the server says it. Raises InputError if the
        server does not answer or does not have the model."""
        return find_model(self.endpoint, self.model)

    def serve(
        self,
        prompter: Prompter,
        prompt: str,
        scorings: Mapping[str, Scoring],
        measures: Sequence[str],
        limit: int | None,
        longest: int,
    ) -> ServedSource:
        """Find out what the server supports, and warn about what it does not.

        prompt: an example. scorings: of the tasks by name. limit: as `find` gives it; longest: the
        greatest length. Raises InputError if the server does not answer, or supports nothing.
        """
        protocol = find_protocol(self.endpoint, self.model, prompter, prompt, chat=self.chat)
        unscored = [
            task for task, scoring in scorings.items()
            if scoring != "generate" and protocol.scores is None
        ]  # fmt: skip
        # a whole text is sent, and one token generated
        whole = protocol.is_whole and (limit is None or longest < limit)
        unmeasured = [name for name in measures if name != "perplexity" or not whole]
        reasons = []
        if unscored:
            reasons.append(
                f"{', '.join(unscored)}, since its server gives no log-probabilities of prompts "
                "(--scoring generate scores text instead)"
            )
        if unmeasured:
            reasons.append(
                f"{', '.join(unmeasured)} (perplexity takes log-probabilities of any token ids and "
                "a token more than the greatest length, the others the model itself)"
            )
        if reasons:
            sentence = f"{self.name} is not examined by {'; nor by '.join(reasons)}."
            if len(unscored) == len(scorings) and len(unmeasured) == len(measures):
                raise InputError(f"Nothing is left to measure: {sentence}")
            progress.warn(sentence)
        return ServedSource(
            self.name, self.model, self.endpoint, protocol, limit, self.requests,
            (*unscored, *unmeasured),
        )  # fmt: skip


def parse_address(settings: Settings) -> Address | None:
    """The endpoint of the settings, if they have one. Raises InputError for half of one, for a bad
    URL or name, and for /chat/completions without the chat template."""
    url, model = settings.endpoint, settings.endpoint_model
    if url is None or model is None:
        if url or model:
            raise InputError("A served model needs both --endpoint URL and --endpoint-model NAME.")
        if settings.tokenizer:
            raise InputError("--tokenizer is for an --endpoint; local models have their own.")
        return None
    name, sign, rest = model.partition("=")
    model = rest if sign else model
    name = name if sign else model.rstrip("/").rpartition("/")[2]
    if not model or name in ("", ".", "..") or "/" in name:
        raise InputError(
            f"--endpoint-model '{settings.endpoint_model}' is no name; give NAME, or "
            "ONE=NAME to call it ONE in the report."
        )
    endpoint = Endpoint(url, settings.endpoint_timeout, option="--endpoint", keys=KEYS)
    chat = url.partition("?")[0].rstrip("/").endswith(_CHAT)
    if chat and not settings.chat:
        raise InputError(
            "--endpoint ends with /chat/completions, which puts prompts into a chat template; give "
            "--chat, so that lengths are counted with it."
        )
    return Address(name, model, endpoint, chat, settings.endpoint_requests)
