"""Prompts of a given length, counted by the evaluated model's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from regraft.errors import InputError
from regraft.evaluate.prompts.template import render_chat

_TRIES = 64
_MARK = "QUESTION"
_UNIT = 20.0  # tokens in about a sentence: the first guess of the search


class TooShort(InputError):
    """The necessary parts of a prompt have more tokens than the budget."""


class UsedUp(InputError):
    """A text has fewer units than requested."""


@dataclass(frozen=True)
class Encoded:
    """ids: prompt and answer. positions: for each reference, those of its tokens in `ids`."""

    ids: list[int]
    positions: list[list[int]]


class Prompter:
    """Turns prompts into token ids. tokenizer: a fast transformers tokenizer; chat: wrap prompts in
    its chat template, with the beginning of the answer in the assistant's turn.

    Raises InputError for a slow tokenizer, and with `chat` for one without a chat template.
    """

    def __init__(self, tokenizer: Any, *, chat: bool = False) -> None:
        if not tokenizer.is_fast:
            raise InputError("The model has no fast tokenizer (tokenizer.json); convert it first.")
        if chat and not tokenizer.chat_template:
            raise InputError("The model's tokenizer has no chat template; leave --chat out.")
        self.tokenizer, self.chat = tokenizer, chat
        if chat:
            self.wrap("")

    def wrap(self, question: str, prefix: str = "") -> str:
        """The whole prompt: the question, in the chat template if `chat`, and the beginning of the
        answer."""
        if not self.chat:
            return question + prefix
        return render_chat(self.tokenizer, question) + prefix.lstrip()

    def unwrap(self, prompt: str) -> tuple[str, str]:
        """The question and the beginning of the answer of a prompt in the chat template.

        Raises InputError if the template has other text around this question than around others.
        """
        before, found, after = render_chat(self.tokenizer, _MARK).partition(_MARK)
        end = prompt.rfind(after) if found and after and prompt.startswith(before) else -1
        if end < len(before):
            raise InputError(
                "The chat template does not give back the question of a prompt; give an "
                "--endpoint with /completions, which is sent the whole prompt."
            )
        return prompt[len(before) : end], prompt[end + len(after) :]

    def ids(self, text: str) -> list[int]:
        """Token ids, with the tokenizer's special tokens unless the text starts with them."""
        return list(self._encode(text)["input_ids"])

    def count(self, text: str) -> int:
        """The number of token ids of `text`."""
        return len(self.ids(text))

    def encode(self, prompt: str, answer: str, spans: list[tuple[int, int]]) -> Encoded:
        """Prompt and answer encoded together. spans: (start, end) of each reference in `answer`, in
        characters; a token belongs to a reference if they share a character."""
        encoding = self._encode(prompt + answer, return_offsets_mapping=True)
        offsets, first = encoding["offset_mapping"], len(prompt)
        positions = [
            [
                at
                for at, (start, end) in enumerate(offsets)
                if start < first + high and end > first + low and end > start
            ]
            for low, high in spans
        ]
        return Encoded(list(encoding["input_ids"]), positions)

    def unknown_share(self, text: str) -> float:
        """Share of the text's tokens that are the unknown token."""
        ids, unknown = self.ids(text), self.tokenizer.unk_token_id
        return ids.count(unknown) / max(1, len(ids)) if unknown is not None else 0.0

    def _encode(self, text: str, **more: Any) -> Any:
        start = self.tokenizer.bos_token
        special = not (self.chat or (start and text.startswith(start)))
        return self.tokenizer(text, add_special_tokens=special, verbose=False, **more)


def fit(
    build: Callable[[int], str],
    count: Callable[[str], int],
    budget: int,
    *,
    least: int = 0,
    what: str = "prompt",
) -> int:
    """The greatest number of units with which `build(units)` fits into `budget` tokens.

    build: makes a text with this many units of haystack; more units make it longer. A secant search
    within a bracket that is halved in every third step: about six calls of `count`, at most 64.
    Raises TooShort if `least` units are already too long, and the UsedUp of `build` if all its text
    does not fill the budget.
    """
    low, low_tokens = least, count(build(least))
    if low_tokens > budget:
        raise TooShort(
            f"A {what} takes at least {low_tokens} tokens, and there is room for {budget}; "
            "raise --lengths or leave the task out."
        )
    high: int | None = None
    high_tokens, rate = 0, _UNIT
    used_up: UsedUp | None = None  # by `high` units
    for tries in range(_TRIES):
        if low_tokens == budget or (high is not None and high - low < 2):
            break
        step = max(1, int((budget - low_tokens) / rate))
        if high is None:
            step += tries > 1  # a step too far closes the bracket
        else:
            step = (high - low) // 2 if tries % 3 == 2 else min(step, high - low - 1)
        at = low + step
        try:
            tokens = count(build(at))
        except UsedUp as error:
            high, high_tokens, used_up = at, 0, error
            continue
        if tokens > budget:
            high, high_tokens, used_up = at, tokens, None
        else:
            rate = rate if high_tokens else max((tokens - low_tokens) / step, 0.25)
            low, low_tokens = at, tokens
        if high is not None and high_tokens > low_tokens:
            rate = (high_tokens - low_tokens) / (high - low)
    if used_up is not None and low_tokens < budget:
        raise used_up
    return low
