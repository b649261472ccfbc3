"""Conversations as cached tokens and as rows: what is learned, cut and left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chats import CHATML, TAGGED, tokenizer_with

from regraft.data.batch import IGNORED, make_row
from regraft.data.positions import Sampler
from regraft.data.rows import Rows
from regraft.data.sources import Text
from regraft.data.tokens import Tokens, tokenise
from regraft.errors import InputError

END = "<|im_end|>"


def chat(*turns: str) -> dict[str, object]:
    """A record whose turns are the user's and the assistant's in turn."""
    roles = ("user", "assistant") * len(turns)
    return {
        "messages": [
            {"role": role, "content": text} for role, text in zip(roles, turns, strict=False)
        ]
    }


def tokens_of(folder: Path, *records: object, template: str = CHATML, **settings) -> Tokens:
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = Text("jsonl", str(path), chat=True, **settings)
    return tokenise(source, tokenizer_with(template), folder / "cache", 700)


def label_text(labels) -> str:
    return tokenizer_with(CHATML).decode([int(label) for label in labels if label != IGNORED])


TURNS = [f"{word} {number}" for number, word in enumerate(("river", "lantern") * 8)]
ANSWERS = [turn + END for turn in TURNS[1::2]]


def test_labels_of_a_packed_row_are_the_assistants_turns(tmp_path):
    tokens = tokens_of(tmp_path, chat(*TURNS[:6]), chat(*TURNS[6:10]))
    rows = Rows("packed", tokens.lengths(), np.arange(2), 256, chat=tokens)
    (pieces,) = rows.rows
    row = make_row(
        pieces, tokens, 256, Sampler("contiguous", 256), (0, 0, 0), masks=True, padding=0
    )
    learned = (row.labels != IGNORED).nonzero()[:, 0]
    assert label_text(row.labels) == "".join(ANSWERS[:5])
    # labels are shifted: each is the next token
    assert row.ids[learned + 1].tolist() == row.labels[learned].tolist()
    lengths = tokens.lengths().tolist()
    assert row.positions[: sum(lengths)].tolist() == [n for size in lengths for n in range(size)]
    assert row.documents[: sum(lengths)].tolist() == [0] * lengths[0] + [1] * lengths[1]
    whole = make_row(
        pieces, tokens, 256, Sampler("contiguous", 256), (0, 0, 0), masks=False, padding=0
    )
    assert whole.labels.equal(row.labels)
    assert whole.positions[: sum(lengths)].tolist() == list(range(sum(lengths)))


def test_a_long_chat_is_cut_between_exchanges(tmp_path):
    tokens = tokens_of(tmp_path, chat(*TURNS))
    (size,) = tokens.lengths().tolist()
    exchange = size // 8
    length = 3 * exchange + exchange // 2
    (*rows, last) = Rows("whole", tokens.lengths(), np.arange(1), length, chat=tokens).rows
    starts = [0, *tokens.cuts(0).tolist(), size]
    for (piece,), number in zip([*rows, last], (3, 3, 2), strict=True):
        assert piece.start in starts
        assert piece.stop == starts[starts.index(piece.start) + number]
        row = make_row(
            [piece], tokens, length, Sampler("contiguous", length), (0, 0, 0), masks=True, padding=0
        )
        at = starts.index(piece.start)
        assert label_text(row.labels) == "".join(ANSWERS[at : at + number])
    packed = Rows("packed", tokens.lengths(), np.arange(1), length, chat=tokens)
    assert sorted(piece[:3] for row in packed.rows for piece in row) == [
        piece[:3] for (piece,) in [*rows, last]
    ]


def test_exchanges_that_fill_a_row_to_its_last_token_are_all_in_it(tmp_path):
    tokens = tokens_of(tmp_path, chat(*TURNS))
    length = int(tokens.cuts(0)[2])
    first = Rows("packed", tokens.lengths(), np.arange(1), length, chat=tokens).rows[0]
    assert [piece[:3] for piece in first] == [(0, 0, length)]


def test_an_exchange_longer_than_a_row_is_cut_and_a_piece_without_an_answer_left_out(tmp_path):
    tokens = tokens_of(tmp_path, chat("river " * 60, "lantern", "old", "lantern"))
    rows = Rows("packed", tokens.lengths(), np.arange(1), 64, chat=tokens).rows
    ((piece,),) = rows  # the other pieces are the user's alone
    first = np.flatnonzero(tokens.learned(0, 0, 999))[0]
    assert piece.start == first // 64 * 64
    assert piece.stop == tokens.lengths()[0]
    for kind in ("whole", "joined"):
        for row in Rows(kind, tokens.lengths(), np.arange(1), 64, chat=tokens).rows:
            assert any(tokens.learned(*piece[:3]).any() for piece in row)


def test_skipped_text_leaves_something_to_learn(tmp_path):
    """Positions that skip text can miss every answer; then the text is consecutive."""
    tokens = tokens_of(tmp_path, chat("river", "lantern", *["river " * 200, "lantern"] * 2))
    sampler = Sampler("multi_chunk", 1024, (2, 8), 4, 0.0)
    rows = Rows("whole", tokens.lengths(), np.arange(1), 32, reach=sampler.reach(32), chat=tokens)
    row = rows.row(0)
    for sample in range(50):
        made = make_row(row, tokens, 32, sampler, (0, 0, sample), masks=True, padding=0)
        assert made.valid > 0


def test_chats_without_an_answer_are_left_out_with_a_warning(tmp_path):
    records = [chat(*TURNS[:3]), chat("alone"), {"messages": []}, chat(*TURNS[:2])]
    with (
        pytest.warns(UserWarning, match="2 of 4 conversations have no assistant's turn"),
        pytest.warns(UserWarning, match="1 of 2 conversations do not end with the assistant"),
    ):
        tokens = tokens_of(tmp_path, *records)
    assert tokens.lengths()[0] == tokens.lengths()[1]
    with pytest.warns(UserWarning, match="1 of 4 conversations have no messages"):
        tokens = tokens_of(tmp_path, *records, loss_on="all")
    assert len(tokens) == 3
    assert tokens.learned(1, 0, 999).all()
    with pytest.raises(InputError, match="has nothing to learn: no assistant's turn in 2 conv"):
        tokens_of(tmp_path, chat("alone"), chat())
    with pytest.raises(InputError, match=r"chats.jsonl has no text"):
        tokens_of(tmp_path)


def test_the_cache_depends_on_template_and_loss(tmp_path):
    digests = [
        tokens_of(tmp_path, chat(*TURNS[:4]), **settings).digest
        for settings in ({}, {"loss_on": "last"}, {"template": TAGGED}, {})
    ]
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]
    text = tokens_of(tmp_path, chat(*TURNS[:4]), loss_on="last")
    assert label_text(text.slice(0, 0, 999)[text.learned(0, 0, 999)]) == ANSWERS[1]
