"""Conversations as token ids in a model's chat template, and which of the tokens are learned.

The end-of-turn token belongs to the assistant's turn, whether or not the template's
{% generation %} tags include it: it is the special token that follows the turn, spaces between them
included. The spaces after it belong to nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regraft.checkpoint.hf.chat_template import TemplateFailure, run_template
from regraft.data.chat.records import Conversation, Message
from regraft.data.chat.spans import Span, content_spans, find_spans, has_tags, render_with_tags
from regraft.errors import InputError

LossOn = Literal["assistant", "all", "last"]
LIMIT = 20.0
"""Seconds for one conversation; one of a million tokens takes less than a second."""
_REMEDY = (
    "put a chat_template.jinja that fits the model beside its tokenizer, or train on plain text"
)
_OPTIONS = {"date_string": "26 Jul 2024"}
"""Llama 3's templates write the current date without it, so the tokens would depend on the day."""


class Encoded(NamedTuple):
    """A conversation as tokens. learned [n]: whether a token is to be learned; cuts: where an
    exchange begins after another, so that the conversation may be cut there."""

    ids: list[int]
    learned: NDArray[np.bool_]
    cuts: list[int]


class ChatTemplate:
    """A tokenizer's chat template. loss_on: which tokens are learned; all, or those of every
    assistant's turn or of the last.

    Raises InputError where the tokenizer has no template, or one that fails, leaves the text out or
    does not tell the assistant from the user.
    """

    def __init__(self, tokenizer: Any, loss_on: LossOn = "assistant") -> None:
        self._tokenizer, self._loss_on = tokenizer, loss_on
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                "Conversations need a fast tokenizer, whose tokens say where they are in the text; "
                "give the model a tokenizer.json."
            )
        if not tokenizer.chat_template:
            raise InputError(f"The model's tokenizer has no chat template; {_REMEDY}.")
        added = {
            number
            for number, token in tokenizer.added_tokens_decoder.items()
            if not token.content.isspace()
        }
        self._special = added | set(tokenizer.all_special_ids)
        if tokenizer.bos_token_id != tokenizer.eos_token_id:
            self._special.discard(tokenizer.bos_token_id)
        self._check_roles()

    @property
    def identity(self) -> str:
        """What the result depends on beside the tokenizer."""
        return repr((self._tokenizer.chat_template, self._loss_on, _OPTIONS))

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded]:
        """The tokens of each conversation, which has at least one message.

        Raises InputError where the template refuses one, or the assistant's turns cannot be told.
        """
        rendered = [self._render(conversation) for conversation in conversations]
        texts = [text for text, _ in rendered]
        if not texts:
            return []
        tokens = self._tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        parts = zip(
            conversations, rendered, tokens["input_ids"], tokens["offset_mapping"], strict=True
        )
        return [
            self._mark(text, spans, ids, offsets, _ends_of_exchanges(conversation.messages))
            for conversation, (text, spans), ids, offsets in parts
        ]

    def count(self, conversation: Conversation) -> int:
        """Number of tokens that `encode` gives."""
        text = self._text(conversation, conversation.messages)
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _render(self, conversation: Conversation) -> tuple[str, list[Span]]:
        """The text and the spans of the assistant's turns in it."""
        messages, tools = conversation.messages, conversation.tools
        template = str(self._tokenizer.get_chat_template(None, tools))
        if has_tags(template):
            options = {**_OPTIONS, "tools": tools}
            return self._run(
                lambda: render_with_tags(self._tokenizer, template, messages, options),
                conversation.where,
            )
        text = self._text(conversation, messages)
        spans = find_spans(text, messages, partial(self._text, conversation))
        if spans is None and self._loss_on != "all":
            raise InputError(
                f"{conversation.where}: the chat template does not say which text is the "
                "assistant's, because it changes earlier turns; put {% generation %} tags around "
                "the assistant's text in the template, or say loss_on: all."
            )
        return text, spans or []

    def _text(
        self, conversation: Conversation, messages: list[Message], opened: bool = False
    ) -> str:
        """Messages in place of the conversation's own. opened: with the beginning of an answer."""
        return self._run(
            lambda: str(
                self._tokenizer.apply_chat_template(
                    messages, tools=conversation.tools, tokenize=False,
                    add_generation_prompt=opened, **_OPTIONS,
                )
            ),
            conversation.where,
        )  # fmt: skip

    def _mark(
        self,
        text: str,
        spans: list[Span],
        ids: list[int],
        offsets: list[tuple[int, int]],
        ends_exchange: list[bool],
    ) -> Encoded:
        """ends_exchange: for every turn of the assistant."""
        places = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
        starts, ends = places[:, 0], places[:, 1]

        def is_blank(token: int) -> bool:
            return not text[starts[token] : ends[token]].strip()

        learned = np.full(len(ids), self._loss_on == "all")
        cuts = []
        for number, (begin, end) in enumerate(spans, 1):
            first = int(np.searchsorted(ends, begin, "right"))
            last = max(first, int(np.searchsorted(starts, end, "left")))
            last = self._end_of_turn(ids, first, last, is_blank)
            if self._loss_on == "assistant" or number == len(spans):
                learned[first:last] = True
            while last < len(ids) and is_blank(last):
                last += 1
            # a template may have tags around some of the turns only
            known = len(spans) == len(ends_exchange)
            if last < len(ids) and (not known or ends_exchange[number - 1]):
                cuts.append(last)
        return Encoded(ids, learned, cuts)

    def _end_of_turn(self, ids: list[int], first: int, last: int, is_blank: Any) -> int:
        """Where a turn of the tokens [first, last) ends, its end-of-turn token included."""
        end = last
        while end > first and is_blank(end - 1):
            end -= 1
        if end > first and ids[end - 1] in self._special:
            return end
        end = last
        while end < len(ids) and is_blank(end):
            end += 1
        return end + 1 if end < len(ids) and ids[end] in self._special else last

    def _run(self, render: Any, where: str) -> Any:
        try:
            return run_template(render, LIMIT)
        except TemplateFailure as failure:
            raise InputError(
                f"{where}: the model's chat template does not accept the conversation ({failure})."
            ) from None

    def _check_roles(self) -> None:
        """Refuse a template in which a turn does not show whose it is."""
        turns = [("user", "aa"), ("assistant", "bb"), ("user", "cc"), ("assistant", "dd")]
        messages = [{"role": role, "content": content} for role, content in turns]

        def render(part: list[Message], opened: bool) -> str:
            try:
                return run_template(
                    lambda: str(
                        self._tokenizer.apply_chat_template(part, tokenize=False, **_OPTIONS)
                    ),
                    LIMIT,
                )
            except TemplateFailure as failure:
                raise InputError(
                    f"The model's chat template does not accept a conversation ({failure}); "
                    f"{_REMEDY}."
                ) from None

        text = render(messages, False)
        spans = content_spans(text, messages, render)
        if spans is None:
            problem = "does not give back the text of a conversation"
        else:
            (_, a), (b, c), (d, _) = spans[0], spans[1], spans[2]
            if text[a:b] != text[c:d]:
                return
            problem = "does not tell the assistant's turns from the user's"
        raise InputError(f"The model's chat template {problem}; {_REMEDY}.")


def _ends_of_exchanges(messages: Sequence[Message]) -> list[bool]:
    """For every turn of the assistant, whether neither a tool nor the assistant goes on."""
    following = [*(message["role"] for message in messages[1:]), "user"]
    return [
        after in ("user", "system")
        for message, after in zip(messages, following, strict=True)
        if message["role"] == "assistant"
    ]
