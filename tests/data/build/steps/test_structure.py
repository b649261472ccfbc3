"""`structure` makes long documents of short ones, the same for the same seed."""

from __future__ import annotations

import re

import pytest
from built import documents, run_step
from evaluated import toy
from pydantic import ValidationError

from regraft.data.build.document import Document, Message
from regraft.data.build.steps.structure import Structure
from regraft.data.toy_language import WORDS


def texts(count=8, sentences=6):
    return documents(
        *(
            " ".join(f"Document {n} has sentence {i}." for i in range(sentences))
            for n in range(count)
        )
    )


def step(**keys):
    return Structure.model_validate({"share": 1.0, **keys})


def sentences(items):
    found = [re.findall(r"Document \d has sentence \d\.", one.text) for one in items]
    return [sentence for one in found for sentence in one]


def test_untied_documents_hold_every_sentence_once_within_the_length():
    result, statistics = run_step(step(length=700), texts())
    assert sorted(sentences(result)) == sorted(sentences(texts()))
    assert sentences(result) != sentences(texts())
    assert statistics.counts == {"documents made": len(result)}
    assert all(len(one.text) <= 700 and "<to " in one.text for one in result)
    assert len(result) == 4  # two documents of 154 characters and their marks in each
    assert result[0].metadata == {"structure": "untie"}
    assert result[0].scores == {"structure.documents": 2.0}


def test_the_seed_decides():
    outputs = [
        [one.text for one in run_step(step(length=2000), texts(), seed=seed)[0]]
        for seed in (0, 0, 1)
    ]
    assert outputs[0] == outputs[1] != outputs[2]


def test_a_share_of_0_and_conversations_stay_as_they_are():
    chat = Document("user: a\nassistant: b", "c", "a", messages=(Message("user", "a"),))
    items = [*texts(3), chat]
    for kind in ("untie", "reorder"):
        result, _ = run_step(step(kind=kind, share=0.0, size=40), items)
        assert {one.text for one in result} == {one.text for one in items}
    result, statistics = run_step(step(), [chat])
    assert [one.messages for one in result] == [chat.messages]
    assert statistics.counts == {"conversations left as they are": 1}


def test_reordered_passages_come_with_their_order():
    result, _ = run_step(step(kind="reorder", size=50), texts(2))
    for made, document in zip(result, texts(2), strict=True):
        passages = dict(re.findall(r"<passage (\d)>\n([^<]*?)\s*(?=<)", made.text))
        order = re.findall(r"<order ([\d ]+)>", made.text)[0].split()
        assert " ".join(passages[number] for number in order) == document.text


def test_negatives_are_pieces_of_other_documents(tmp_path):
    model = str(toy(tmp_path / "model"))
    items = documents(*(" . ".join(WORDS[i : i + 12]) + " ." for i in (20, 60, 100)))
    result, _ = run_step(step(kind="negatives", model=model, length=300, size=40), items)
    assert len(result) == 3
    for made, document in zip(result, items, strict=True):
        words, own = made.text.split(), document.text.split()
        assert len(made.text) > len(document.text) + 40
        left = iter(words)
        assert all(word in left for word in own)  # its own words, in order


def test_bad_keys_are_refused():
    with pytest.raises(ValidationError, match="negatives need a model"):
        step(kind="negatives")
    with pytest.raises(ValidationError, match=r"tail takes \{key\} and no other braces"):
        step(marks={"tail": "{name}"})
    for tail in ("{key.x}", "{key[x]}"):
        with pytest.raises(ValidationError, match=r"tail takes \{key\} and no other braces"):
            step(marks={"tail": tail})
    with pytest.raises(ValidationError, match="pieces are two numbers from 2"):
        step(pieces=[3, 2])
