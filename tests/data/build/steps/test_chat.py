"""`chat` keeps sound conversations and joins them, with questions on their beginnings."""

from __future__ import annotations

import json
import random

import pytest
from built import run_step
from chats import CHATML, tokenizer_with

from regraft.data.build.document import Document, Message
from regraft.data.build.steps.chat import Chat
from regraft.data.build.tokens import ByteCounter, TokenizerCounter
from regraft.data.sources import Text
from regraft.data.tokens import tokenise
from regraft.data.toy_language import Prose
from regraft.errors import InputError


def conversation(number: int, *contents: str, system: str | None = None) -> Document:
    roles = ("user", "assistant") * len(contents)
    turns = [Message(role, text) for role, text in zip(roles, contents, strict=False)]
    if system:
        turns.insert(0, Message("system", system))
    text = "\n\n".join(turn.content for turn in turns)
    return Document(text, str(number), "a", messages=tuple(turns))


def conversations(count: int = 60) -> list[Document]:
    result = []
    for number in range(count):
        prose = Prose(random.Random(number))
        turns = [
            " ".join(word for _ in range(2 + 8 * (turn % 2)) for word in prose.sentence())
            for turn in range(2 + 2 * (number % 3))
        ]
        result.append(conversation(number, *turns, system="be kind" if number % 2 else None))
    return result


def chat(**keys) -> Chat:
    return Chat.model_validate(keys)


def test_conversations_are_joined_to_the_length_of_the_template():
    counter = TokenizerCounter(tokenizer_with(CHATML))
    result, statistics = run_step(chat(length=2500), conversations(30), counter=counter)
    assert len(result) > 2
    for joined in result:
        ids = counter.tokenizer.apply_chat_template([one._asdict() for one in joined.messages])
        assert joined.tokens == len(ids["input_ids"])
        assert 2500 - 8 < joined.tokens <= 2500  # short of it by less than a word
        assert [one.role for one in joined.messages] == ["user", "assistant"] * (
            len(joined.messages) // 2
        )
        assert joined.scores["chat.references"] >= 2
    used = sum(int(joined.scores["chat.conversations"]) for joined in result)
    assert used + statistics.counts["conversations of an unfinished one"] == 30
    assert statistics.counts["conversations made"] == len(result)
    assert statistics.counts["system messages left out"] == 15


def test_questions_on_earlier_parts_are_answered_by_their_text():
    originals = conversations()
    said = {turn.content for one in originals for turn in one.messages}
    result, _ = run_step(chat(length=8000, references=8), originals, counter=ByteCounter())
    kinds = set()
    for joined in result:
        for at, turn in enumerate(joined.messages):
            if turn.content in said or turn.role == "user":
                continue
            question, before = joined.messages[at - 1].content, joined.messages[: at - 1]
            asked, _, quoted = turn.content.partition(": ")
            earlier = [one.content for one in before]
            if asked == "You asked":
                assert quoted.strip('"') in earlier
                kinds.add("answered" if "answer" in question else "next")
            else:
                words = len(turn.content.split())
                assert str(words) in question
                answers = {one for one in earlier if one in said}
                (origin,) = [one for one in answers if one.startswith(turn.content)]
                # half of what came before lies between
                assert 2 * earlier.index(origin) <= len(earlier) + 2
                kinds.add("beginning")
            quote = question.split('"')[1]
            assert sum(one.startswith(quote) for one in earlier) >= 1
    assert kinds == {"answered", "next", "beginning"}


def test_the_seed_decides():
    outputs = [
        [one.text for one in run_step(chat(length=4000), conversations(), seed=seed)[0]]
        for seed in (0, 0, 1)
    ]
    assert outputs[0] == outputs[1] != outputs[2]


def test_unsound_conversations_are_dropped_by_reason():
    sound = conversation(0, "who", "me", "sure")
    items = [
        sound,
        conversation(1, "who"),
        conversation(2, "who", " "),
        Document("", "3", "a", messages=(Message("assistant", "a"), Message("assistant", "b"))),
        Document("", "4", "a", messages=(*sound.messages[:2], Message("system", "s"),
                                         *sound.messages[:2])),
        conversation(5, "who", "As an AI language model, I am nobody."),
    ]  # fmt: skip
    result, statistics = run_step(chat(), items)
    assert [one.messages for one in result] == [sound.messages[:2]]
    assert result[0].text == "who\n\nme"
    assert statistics.counts == {"conversations without their last turns": 1}
    assert statistics.dropped == {
        "no answer": 1, "an empty turn": 1, "turns out of order": 2, "a forbidden phrase": 1,
    }  # fmt: skip
    assert run_step(chat(exchanges=2), [sound])[1].dropped == {"too few exchanges": 1}
    with pytest.raises(InputError, match="'a' has text; say chat: true"):
        run_step(chat(), [Document("text", "0", "a")])


def test_a_conversation_longer_than_the_length_is_cut_between_exchanges():
    long = conversation(0, *(f"turn {number} " + "river " * 20 for number in range(12)))
    result, statistics = run_step(chat(length=750), [long, conversation(1, "river " * 200, "a")])
    (joined,) = result
    assert statistics.counts["conversations cut"] == 1
    assert statistics.dropped == {"an exchange longer than the length": 1}
    assert joined.messages[:4] == long.messages[:4]
    assert joined.messages[4] not in long.messages
    assert 750 - 7 < joined.tokens == len(joined.text) <= 750


def test_what_comes_out_is_read_by_training(tmp_path):
    tokenizer = tokenizer_with(CHATML)
    counter = TokenizerCounter(tokenizer)
    result, _ = run_step(chat(length=1000), conversations(30), counter=counter)
    lines = [{"messages": [turn._asdict() for turn in one.messages]} for one in result]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = Text("jsonl", str(path), chat=True)
    tokens = tokenise(source, tokenizer, tmp_path / "cache", 700)
    assert tokens.lengths().tolist() == [one.tokens for one in result]
