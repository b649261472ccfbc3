"""Requests to /completions and /chat/completions, and what the replies say.

A prompt is sent as token ids, as text, or as messages that the server puts into its chat template.
The log-probabilities of a prompt's tokens come back as `prompt_logprobs` (vLLM), or with
`echo` and `logprobs` as if they had been generated (vLLM, SGLang, llama-cpp-python). In either
case one more token is generated, since a few servers take no 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from regraft.errors import InputError
from regraft.evaluate.prompts.length import Prompter
from regraft.input_files import JsonObject

Prompts = Literal["token ids", "text", "messages", "messages with the answer begun"]
Scores = Literal["prompt_logprobs", "echo"]
Scored = dict[int, tuple[float, bool]]  # by position: (NLL in nats, whether it is the likeliest)

# The only penalties that servers do not leave out by default: llama-cpp-python's server has 1.1,
# and vLLM takes the second from the model's generation_config.json.
_WITHOUT_PENALTY = {"repeat_penalty": 1.0, "repetition_penalty": 1.0}
_ROUNDING = 1e-3  # by which a log-probability may exceed 0


@dataclass(frozen=True)
class Protocol:
    """What a server understands.

    prompts: how it takes prompts. adds_start: it puts the start token in front of a text. strict:
    it refuses parameters that OpenAI's API does not have. scores: how it gives log-probabilities of
    a prompt, None if it does not. first: the first position that has one.
    """

    prompts: Prompts
    adds_start: bool = False
    strict: bool = False
    scores: Scores | None = None
    first: int = 1

    @property
    def is_chat(self) -> bool:
        """Whether prompts are messages."""
        return self.prompts.startswith("messages")

    @property
    def is_whole(self) -> bool:
        """Whether any token ids can be scored at all positions."""
        return self.prompts == "token ids" and self.scores is not None and self.first == 1

    @property
    def route(self) -> str:
        """Where requests go."""
        return "chat/completions" if self.is_chat else "completions"

    def generate(self, model: str, prompter: Prompter, ids: Sequence[int], most: int) -> JsonObject:
        """The request for a greedy continuation of at most `most` tokens."""
        penalty = {} if self.strict else _WITHOUT_PENALTY
        return {**self._common(model, prompter, ids), "max_tokens": most, **penalty}

    def score(self, model: str, prompter: Prompter, ids: Sequence[int]) -> JsonObject:
        """The request for the log-probabilities of all tokens."""
        logprobs: JsonObject = {"echo": True, "logprobs": 1}
        if self.scores == "prompt_logprobs":
            logprobs = {"prompt_logprobs": 1}
        return {**self._common(model, prompter, ids), "max_tokens": 1, **logprobs}

    def _common(self, model: str, prompter: Prompter, ids: Sequence[int]) -> JsonObject:
        common = {"model": model, "temperature": 0.0}
        if self.prompts == "token ids":
            return {**common, "prompt": list(ids)}
        text = to_text(prompter, ids)
        if self.prompts == "text":
            start = prompter.tokenizer.bos_token
            return {**common, "prompt": text.removeprefix(start) if self.adds_start else text}
        question, prefix = prompter.unwrap(text)
        if self.prompts == "messages":
            question = f"{question}\n{prefix}" if prefix else question
        if self.prompts == "messages" or not prefix:
            return {**common, "messages": [_message("user", question)]}
        return {
            **common,
            "messages": [_message("user", question), _message("assistant", prefix)],
            "continue_final_message": True,  # as vLLM and SGLang call it
            "add_generation_prompt": False,
        }


def encode_body(request: JsonObject) -> bytes:
    """A request as the body of a POST."""
    return json.dumps(request).encode()


def to_text(prompter: Prompter, ids: Sequence[int]) -> str:
    """The text of token ids. Raises InputError if its tokens are others."""
    text = str(
        prompter.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    )
    if prompter.ids(text) != list(ids):
        raise InputError(
            "The tokenizer does not give back the tokens of a prompt from its text, and the "
            "endpoint takes no token ids; serve the model with a server that does (vLLM, "
            "llama-server)."
        )
    return text


def read_text(reply: Any) -> str:
    """The text that was generated."""
    choice = reply["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return _checked_text(text)


def read_generated(reply: Any) -> tuple[str, list[float]]:
    """(the text that was generated, the log-probability of its tokens), where they were asked
    for."""
    logprobs = reply["choices"][0]["logprobs"]["token_logprobs"]
    return read_text(reply), list(map(float, logprobs))


def read_count(reply: Any) -> int | None:
    """The number of tokens that the server found in the prompt; None if it does not say."""
    count = (reply.get("usage") or {}).get("prompt_tokens")
    return count if isinstance(count, int) else None


def read_scores(reply: Any, ids: Sequence[int], scores: Scores, start: int | None) -> Scored:
    """The scores of the tokens `ids`. start: the start token, which a server may leave out.

    Raises ValueError, KeyError, IndexError or TypeError if the reply does not have them.
    """
    choice = reply["choices"][0]
    if scores == "prompt_logprobs":
        entries = choice["prompt_logprobs"]
        if len(entries) != len(ids):
            raise ValueError("another number of tokens")
        return {
            at: _ranked(entry, token)
            for at, (entry, token) in enumerate(zip(entries, ids, strict=True))
            if at
        }
    own, best = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
    count = len(own) - reply["usage"]["completion_tokens"]
    missing = len(ids) - count
    if missing not in (0, 1) or (missing and ids[0] != start):
        raise ValueError("another number of tokens")
    return {
        missing + at: _scored(own[at], max(best[at].values()))
        for at in range(count)
        if own[at] is not None
    }


def _ranked(entry: JsonObject, token: int) -> tuple[float, bool]:
    """The score of a token in an entry of `prompt_logprobs`, which has it and the likeliest."""
    best = max(one["logprob"] for one in entry.values())
    return _scored(entry[str(token)]["logprob"], best)


def _scored(own: float, best: float) -> tuple[float, bool]:
    if not math.isfinite(own) or not math.isfinite(best) or own > _ROUNDING:
        raise ValueError("no log-probability")
    return max(0.0, -float(own)), own >= best


def _checked_text(text: Any) -> str:
    if text is None:  # of a message without content
        return ""
    if not isinstance(text, str):
        raise TypeError("no text")
    return text


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
