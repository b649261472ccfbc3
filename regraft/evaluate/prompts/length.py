"""Prompts of a given length, counted by the evaluated model's own tokenizer and chat template."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from regraft.errors import InputError
from regraft.evaluate.prompts.pieces import PieceEncoder
from regraft.evaluate.prompts.template import render_chat

_MARK = "QUESTION"
_CACHED = 1 << 26  # tokens of encoded prompts, 4 bytes each


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
        self._encoded: dict[bytes, tuple[array[int], list[list[int]]]] = {}
        self._room = _CACHED
        self._pieces = PieceEncoder(tokenizer)
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
        return self._pieces.ids(text, self._adds_special(text))

    def count(self, text: str) -> int:
        """The number of token ids of `text`."""
        return len(self.ids(text))

    def encode(self, prompt: str, answer: str, spans: list[tuple[int, int]]) -> Encoded:
        """Prompt and answer encoded together. spans: (start, end) of each reference in `answer`, in
        characters; a token belongs to a reference if they share a character. The result is cached
        for the next model, up to `_CACHED` tokens."""
        named = f"{len(prompt)} {prompt}{answer} {spans}".encode(errors="surrogatepass")
        key = blake2b(named, digest_size=16).digest()
        if key not in self._encoded:
            encoded = self._encode_answer(prompt, answer, spans)
            if len(encoded.ids) > self._room:
                return encoded
            self._room -= len(encoded.ids)
            self._encoded[key] = array("i", encoded.ids), encoded.positions
        ids, positions = self._encoded[key]
        return Encoded(ids.tolist(), positions)

    def _encode_answer(self, prompt: str, answer: str, spans: list[tuple[int, int]]) -> Encoded:
        text, first = prompt + answer, len(prompt)
        special = self._adds_special(text)
        ids, number, offsets = self._pieces.ids_and_offsets(text, len(answer), special)
        positions = [
            [
                at
                for at, (start, end) in enumerate(offsets, number)
                if start < first + high and end > first + low and end > start
            ]
            for low, high in spans
        ]
        return Encoded(ids, positions)

    def unknown_share(self, text: str) -> float:
        """Share of the text's tokens that are the unknown token."""
        ids, unknown = self.ids(text), self.tokenizer.unk_token_id
        return ids.count(unknown) / max(1, len(ids)) if unknown is not None else 0.0

    def _adds_special(self, text: str) -> bool:
        start = self.tokenizer.bos_token
        return not (self.chat or (start and text.startswith(start)))
