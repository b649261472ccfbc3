"""`chat`: conversations that are sound, joined to long ones with questions on their beginnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field

from regraft.data.build.document import Document, Message
from regraft.data.build.generation.conversation_size import text_of
from regraft.data.build.generation.join_conversations import Joiner
from regraft.data.build.step import Context, Step
from regraft.errors import InputError
from regraft.recipe_values import Count, Tokens


class Chat(Step):
    """Keep conversations whose turns alternate and say something. With `length` join them to
    conversations of that many tokens, as LWM does with UltraChat (arXiv 2402.08268): in the
    tokenizer's chat template never more, and short of it by less than a word unless all answers
    together are shorter than what is to be filled. In between the user asks for what was said in
    the first half so far, and the answer is its text, so that the whole depends on its beginning.

    System messages are left out of joined conversations. One that is longer than `length` is used
    up to the last exchange that fits.
    """

    name: ClassVar[str] = "chat"
    length: Tokens | None = Field(
        default=None, description="of joined conversations; default: keep"
    )
    references: Annotated[int, Field(ge=1)] = Field(
        default=4,
        description="questions on earlier parts in a joined conversation, evenly spread; the last "
        "one ends it and fills its length",
    )
    exchanges: Count = Field(default=1, description="fewest questions with an answer")
    forbidden: list[str] = Field(
        default=["as an ai language model"],
        description="drop conversations in which the assistant says one of these, in any case",
    )

    @property
    def independent(self) -> bool:
        return self.length is None

    def run(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        sound = self._sound(documents, context)
        if self.length is None:
            yield from sound
            return
        yield from Joiner(self.length, self.references, sound, context).run()

    def _sound(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        for document in documents:
            if document.messages is None:
                raise InputError(
                    f"The step chat is for conversations, and '{document.source}' has text; say "
                    "chat: true for the source, or leave the step out."
                )
            messages = document.messages
            while messages and messages[-1].role != "assistant":
                messages = messages[:-1]
            reason = self._reason(messages)
            if reason is not None:
                context.statistics.drop(reason)
            elif messages == document.messages:
                yield document
            else:
                context.statistics.count("conversations without their last turns")
                text = text_of(messages)
                yield replace(document, messages=messages, text=text, tokens=None)

    def _reason(self, messages: Sequence[Message]) -> str | None:
        """Why a conversation is dropped."""
        talk = [one.role for one in messages if one.role in ("user", "assistant")]
        if not talk:
            return "no answer"
        if any(not one.content.strip() for one in messages):
            return "an empty turn"
        late_system = any(one.role == "system" for one in messages[1:])
        if talk != ["user", "assistant"] * (len(talk) // 2) or late_system:
            return "turns out of order"
        if len(talk) // 2 < self.exchanges:
            return "too few exchanges"
        said = " ".join(one.content for one in messages if one.role == "assistant").lower()
        if any(words.lower() in said for words in self.forbidden):
            return "a forbidden phrase"
        return None
