"""Joined conversations are never longer than the length, and shorter by less than a word."""

from __future__ import annotations

import random

from built import run_step
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.data.build.document import Document, Message
from regraft.data.build.generation.conversation_size import ConversationSize, text_of
from regraft.data.build.steps.chat import Chat
from regraft.data.build.tokens import ByteCounter

WORDS = ("a", "river", "of", "th\u00e9", "x.", "42", "\nfoo", "incomprehensible", "end\n")
LONGEST = len(b"incomprehensible") + 1


class SpanningCounter(ByteCounter):
    """A text with '.' before a separator has `more` tokens than its parts have."""

    def __init__(self, more: int) -> None:
        self.more = more

    def lengths(self, texts):
        return [
            size + self.more * text.count(".\n\n")
            for size, text in zip(super().lengths(texts), texts, strict=True)
        ]


def conversation(rng: random.Random, number: int, answers: tuple[int, int]) -> Document:
    turns = []
    for exchange in range(rng.randint(1, 3)):
        question, answer = (
            " ".join(rng.choices(WORDS, k=rng.randint(*limits))) for limits in ((1, 12), answers)
        )
        turns += [
            Message("user", f"{number}-{exchange} {question}?"),
            Message("assistant", f"{answer} so."),
        ]
    return Document(text_of(turns), str(number), "a", messages=tuple(turns))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(4000, 8000),  # a conversation has up to 2000 bytes
    references=st.integers(1, 6),
    more=st.integers(-2, 3),
)
def test_a_joined_conversation_lacks_less_than_a_word(seed, length, references, more):
    rng = random.Random(seed)
    documents = [conversation(rng, number, (30, 80)) for number in range(16)]
    counter = SpanningCounter(more)
    step = Chat(length=length, references=references)
    for joined in run_step(step, documents, counter=counter, seed=seed)[0]:
        assert joined.tokens == ConversationSize(counter).whole(joined.messages) <= length
        # a word, a digit of the number of words, and what spans the last two messages
        assert length - joined.tokens < LONGEST + 1 + abs(more)
        assert joined.scores["chat.references"] >= 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(700, 3000), more=st.integers(-2, 3))
def test_short_answers_leave_a_joined_conversation_within_its_length(seed, length, more):
    rng = random.Random(seed)
    documents = [conversation(rng, number, (1, 30)) for number in range(16)]
    counter = SpanningCounter(more)
    for joined in run_step(Chat(length=length), documents, counter=counter, seed=seed)[0]:
        assert joined.tokens == ConversationSize(counter).whole(joined.messages) <= length
