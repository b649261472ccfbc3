"""Tokens of conversations as `regraft train` counts them, in the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from regraft.data.build.document import Message
from regraft.data.build.tokens import Counter, TokenizerCounter
from regraft.data.chat.records import Conversation
from regraft.data.chat.template import ChatTemplate

_BEFORE = (Message("user", "a"), Message("assistant", "b"))


def text_of(messages: Sequence[Message]) -> str:
    """The text of a conversation's document."""
    return "\n\n".join(message.content for message in messages)


class ConversationSize:
    """Counts tokens in the chat template of a counter's tokenizer; with one that has none, those of
    the text."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._template = None
        if isinstance(counter, TokenizerCounter) and counter.tokenizer.chat_template:
            self._template = ChatTemplate(counter.tokenizer)

    def whole(self, messages: Sequence[Message], where: str = "a conversation") -> int:
        """Tokens of a conversation. Raises InputError where the template refuses it."""
        if self._template is None:
            return self._counter.lengths([text_of(messages)])[0]
        plain = [message._asdict() for message in messages]
        return self._template.count(Conversation(plain, where))

    def added(self, messages: Sequence[Message], where: str = "a conversation") -> int:
        """Tokens by which a conversation grows with these messages at its end, give or take one
        where a token spans two messages."""
        return self.whole((*_BEFORE, *messages), where) - self._before

    @cached_property
    def start(self) -> int:
        """Tokens of a conversation beside those of its messages, such as a template's own system
        message."""
        return self._before - (self.whole((*_BEFORE, *_BEFORE)) - self._before)

    @cached_property
    def _before(self) -> int:
        return self.whole(_BEFORE)
