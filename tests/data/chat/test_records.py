"""Records of the usual data sets as conversations, and records that are none."""

from __future__ import annotations

import json

import pytest

from regraft.data.chat.records import COLUMNS, read_conversation
from regraft.data.sources import Text, documents, records
from regraft.errors import InputError

PAIR = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
PARTS = [{"type": "text", "text": "a"}]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": PAIR, "id": 3},
        {"messages": [{"role": "user", "content": PARTS, "name": None}, PAIR[1]], "tools": "[]"},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"prompt": "a", "response": "b", "messages": None},
        {"prompt": "a", "completion": "b"},
    ],
)
def test_records_of_every_form(record):
    conversation = read_conversation(record, "x")
    assert conversation.messages == PAIR
    assert conversation.tools is None


def test_a_system_text_tools_and_calls_reach_the_template():
    record = {
        "system": "s",
        "tools": '[{"name": "find"}]',
        "turns": [PAIR[0], {"role": "assistant", "tool_calls": [{"name": "find"}]},
                  {"from": "observation", "value": "3"}, {"role": "user", "content": "d"}],
    }  # fmt: skip
    conversation = read_conversation(record, "x", "turns")
    assert conversation.tools == [{"name": "find"}]
    assert conversation.messages == [
        {"role": "system", "content": "s"},
        PAIR[0],
        {"role": "assistant", "content": "", "tool_calls": [{"name": "find"}]},
        {"role": "tool", "content": "3"},
        {"role": "user", "content": "d"},
    ]
    assert [m["role"] for m in conversation.answered().messages][-1] == "assistant"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "x is not an object"),
        ({"text": "a"}, "x has no conversation in 'messages', .*; it has text"),
        ({"prompt": "a"}, "it has prompt"),
        ({"messages": "a"}, "'messages' is not a list"),
        ({"messages": ["a"]}, "x, message 1 is not an object"),
        ({"messages": [*PAIR, {"role": "judge"}]}, "message 3 has the role 'judge'"),
        ({"messages": [{"role": "user"}]}, "message 1 has no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "the type 'image'"),
        ({"messages": [{"role": "user", "content": [3]}]}, "part of the type 'int'"),
        ({"messages": PAIR, "tools": "{"}, "'tools' of x is not valid JSON"),
        ({"messages": PAIR, "tools": [3]}, "'tools' is not a list of descriptions"),
        ({"messages": [{"role": "tool", "content": "3"}, *PAIR]}, "x begins with a tool's turn"),
        ({"conversations": [{"from": "observation", "value": "3"}], "system": "s"}, "begins with"),
    ],
)  # fmt: skip
def test_records_that_are_no_conversation_are_named(record, message):
    with pytest.raises(InputError, match=message):
        read_conversation(record, "x")


def test_files_give_records_with_their_places(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": PAIR}) + "\n\n")
    table = pa.table({"messages": [PAIR], "system": [None], "size": [3]})
    parquet.write_table(table, tmp_path / "c.parquet")
    for kind, place in (("jsonl", "c.jsonl, line 1"), ("parquet", "c.parquet, record 1")):
        source = Text(kind, str(tmp_path / f"c.{kind}"), chat=True)
        ((where, record),) = records(source, COLUMNS)
        assert where.endswith(place)
        assert "size" not in record or kind == "jsonl"
        assert read_conversation(record, where).messages == PAIR
        with pytest.raises(InputError, match="to train on its messages, say chat: true"):
            list(documents(Text(kind, str(tmp_path / f"c.{kind}"))))
    (tmp_path / "c.jsonl").write_text("[]\n")
    with pytest.raises(InputError, match="line 1 is not a JSON object"):
        list(records(Text("jsonl", str(tmp_path / "c.jsonl")), COLUMNS))


def test_records_of_a_hub_dataset(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"messages": [PAIR, PAIR], "score": [1, 2]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: rows)
    found = list(records(Text("hub", "org/chats", chat=True), COLUMNS))
    assert found == [(f"org/chats, record {n}", {"messages": PAIR}) for n in (1, 2)]
