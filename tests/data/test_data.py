"""From text to rows: every token once, documents apart, deterministic; bad input is named."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.data import toy_language
from regraft.data.batch import IGNORED, make_row
from regraft.data.positions import Sampler
from regraft.data.rows import Mixture, Rows, hold_out
from regraft.data.sources import Text, digest, documents
from regraft.data.tokens import Tokens, tokenise
from regraft.errors import InputError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    toy_language.write_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


TEXTS = ["note paris otter ;", "the old river .", "anna lifts the hammer ."]


def write_source(kind: str, folder: Path) -> Text:
    if kind == "jsonl":
        path = folder / "t.jsonl"
        path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS) + "\n\n")
    elif kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        path = folder / "t.parquet"
        parquet.write_table(pa.table({"text": TEXTS}), path)
    else:
        path = folder / "t.txt"
        path.write_text("\n---\n".join(TEXTS))
    return Text(kind, str(path), separator="\n---\n" if kind == "text" else None)


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_documents_of_every_kind_of_file(kind, tmp_path):
    source = write_source(kind, tmp_path)
    assert list(documents(source)) == TEXTS
    by_folder = Text(kind, str(tmp_path), separator=source.separator)
    assert list(documents(by_folder)) == TEXTS
    assert digest(by_folder) == digest(source)


def test_a_hub_dataset_is_read_by_name_split_and_revision(monkeypatch):
    datasets = pytest.importorskip("datasets")
    calls = []

    def load(name, **options):
        calls.append((name, options))
        if name == "org/missing":
            raise ConnectionError("no\nnetwork")
        return datasets.Dataset.from_dict({"body": TEXTS})

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Text("hub", "org/texts@v2", field="body", split="test")
    assert list(documents(source)) == TEXTS
    assert digest(source) == digest(source)
    assert calls[0] == ("org/texts", {"split": "test", "revision": "v2"})
    with pytest.raises(InputError, match="no column 'text'; it has body"):
        list(documents(Text("hub", "org/texts")))
    with pytest.raises(InputError, match=r"cannot be loaded \(ConnectionError: no network\)"):
        list(documents(Text("hub", "org/missing")))


def test_tokens_are_cached_by_content(tmp_path, tokenizer, monkeypatch):
    source = write_source("jsonl", tmp_path)
    first = tokenise(source, tokenizer, tmp_path / "cache", 246)
    assert len(first) == 3
    ids = tokenizer(TEXTS[1])["input_ids"]
    assert first.slice(1, 0, 99).tolist() == [*ids, tokenizer.eos_token_id]
    moved = tmp_path / "moved.jsonl"
    (tmp_path / "t.jsonl").rename(moved)
    from regraft.data import tokens

    with monkeypatch.context() as patch:
        patch.setattr(tokens, "documents", lambda source: pytest.fail("tokenised again"))
        again = tokenise(Text("jsonl", str(moved)), tokenizer, tmp_path / "cache", 246)
    assert again.digest == first.digest
    moved.write_text(moved.read_text().replace("old", "tiny"))
    other = tokenise(Text("jsonl", str(moved)), tokenizer, tmp_path / "cache", 246)
    assert other.digest != first.digest


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a"}\n{"text": 3}\n', "line 2 has no text in its field 'text'; it has text"),
        ('{"body": "a"}\n', "line 1 has no text in its field 'text'; it has body"),
        ("{\n", "line 1 is not valid JSON"),
        ("\n \n", "has no text"),
    ],
)
def test_broken_lines_are_named(content, words, tmp_path, tokenizer):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        tokenise(Text("jsonl", str(path)), tokenizer, tmp_path / "cache", 246)
    assert words in str(caught.value)
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_column_of_numbers_is_not_text(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": [None, "a"], "n": [1, None]}), tmp_path / "t")
    assert list(documents(Text("parquet", str(tmp_path / "t")))) == ["a"]
    with pytest.raises(InputError, match="has int in its field 'n', not text"):
        list(documents(Text("parquet", str(tmp_path / "t"), field="n")))


def test_text_without_tokens_is_not_a_document(tmp_path):
    class NoTokensForDash:
        eos_token_id = None

        def __call__(self, texts, **_):
            return {"input_ids": [[] if text == "-" else [1, 2] for text in texts]}

        def get_vocab(self):
            return {}

    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("-", "a", "-")))
    tokens = tokenise(Text("jsonl", str(path)), NoTokensForDash(), tmp_path / "cache", 8)
    assert tokens.lengths().tolist() == [2]


def test_missing_files_and_tokenizers_of_other_models_are_refused(tmp_path, tokenizer):
    with pytest.raises(InputError, match="no such file or folder"):
        list(documents(Text("text", str(tmp_path / "nothing*"))))
    with pytest.raises(InputError, match="model has 100 rows"):
        tokenise(write_source("jsonl", tmp_path), tokenizer, tmp_path / "cache", 100)


def test_synthetic_notes_are_of_the_stated_length_and_repeatable():
    source = Text("synthetic", "notes", documents=3, words=64)
    texts = list(documents(source))
    assert [len(text.split()) for text in texts] == [63] * 3  # <s> comes from the tokenizer
    assert texts == list(documents(source))
    assert len(set(texts)) == 3


sizes = st.lists(st.integers(1, 90), min_size=1, max_size=40)


@given(lengths=sizes, length=st.integers(8, 64), seed=st.integers(0, 99))
@settings(max_examples=150)
def test_packed_rows_hold_every_token_once_and_cut_only_the_long(lengths, length, seed):
    rows = Rows("packed", np.array(lengths), np.arange(len(lengths)), length, seed=seed)
    seen: dict[int, list[tuple[int, int]]] = {}
    for row in rows.rows:
        assert sum(piece.stop - piece.start for piece in row) <= length
        for piece in row:
            seen.setdefault(piece.document, []).append((piece.start, piece.stop))
    for document, size in enumerate(lengths):
        parts = sorted(seen[document])
        assert parts[0][0] == 0
        assert parts[-1][1] == size
        assert all(a[1] == b[0] for a, b in pairwise(parts))
        assert len(parts) == -(-size // length)
    halves = [sum(p.stop - p.start for p in row) for row in rows.rows]
    assert sum(2 * half <= length for half in halves) <= 1  # else two rows would be one


@given(lengths=sizes, length=st.integers(8, 64), seed=st.integers(0, 99))
@settings(max_examples=50)
def test_joined_rows_are_full_and_whole_rows_are_windows(lengths, length, seed):
    array, every = np.array(lengths), np.arange(len(lengths))
    joined = Rows("joined", array, every, length, seed=seed)
    assert len(joined) == sum(lengths) // length
    assert all(sum(p.stop - p.start for p in row) == length for row in joined.rows)
    whole = Rows("whole", array, every, length, reach=3 * length, seed=seed)
    for (piece,) in whole.rows:
        assert 2 * (piece.stop - piece.start) >= length
        assert piece.start % length == 0
        assert piece.stop <= piece.reach <= min(lengths[piece.document], piece.start + 3 * length)


def test_every_epoch_has_every_row_in_another_order():
    rows = Rows("whole", np.full(50, 10), np.arange(50), 10, seed=4)
    epochs = [[rows.row(50 * epoch + i)[0].document for i in range(50)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert rows.row(3)[0].document == epochs[0][3]


def test_a_mixture_is_within_one_row_of_its_shares():
    mixture = Mixture({"a": 0.5, "b": 0.3, "c": 0.2})
    for number in range(1, 301):
        name, _ = mixture.next()
        assert name in mixture.counts
        for key, share in mixture.shares.items():
            assert abs(mixture.counts[key] - share * number) < 1 + 1e-9


def test_held_out_documents_are_not_trained_on():
    train, held_out = hold_out(50, 0.1, 3)
    assert len(held_out) == 5
    assert sorted([*train, *held_out]) == list(range(50))
    assert len(hold_out(2, 0.01, 0)[1]) == 1
    assert len(hold_out(1, 0.5, 0)[1]) == 0


def counting(folder: Path, lengths: list[int]) -> Tokens:
    """Documents whose tokens count up: 1000 * document + position."""
    ends = np.cumsum(lengths)
    ids = np.concatenate([1000 * d + np.arange(n) for d, n in enumerate(lengths)])
    ids.astype(np.uint32).tofile(folder / "ids.bin")
    np.save(folder / "ends.npy", ends.astype(np.int64))
    (folder / "meta.json").write_text('{"digest": "x", "highest": 1, "chat": null}')
    return Tokens(folder)


def rows_of(tokens: Tokens, kind: str, length: int, sampler: Sampler, **options):
    rows = Rows(kind, tokens.lengths(), np.arange(len(tokens)), length, reach=sampler.reach(length))
    options = {"masks": True, "padding": 7, **options}
    return [
        make_row(row, tokens, length, sampler, (0, 0, i), **options)
        for i, row in enumerate(rows.rows)
    ]


def test_labels_are_the_next_token_of_the_same_document(tmp_path):
    tokens = counting(tmp_path, [70, 20, 9, 40])
    for kind in ("whole", "packed", "joined"):
        for row in rows_of(tokens, kind, 32, Sampler("contiguous", 32)):
            assert len(row.ids) == len(row.labels) == len(row.positions) == 32
            labelled = row.labels != IGNORED
            assert (row.labels[labelled] == row.ids[labelled] + 1).all()
            last = {69, 1019, 2008, 3039}
            missing = set(row.ids[~labelled].tolist()) - {7}
            assert missing <= last


def test_packed_documents_begin_at_their_starts_and_at_position_0(tmp_path):
    tokens = counting(tmp_path, [20, 9, 2])
    (row,) = rows_of(tokens, "packed", 32, Sampler("contiguous", 32))
    starts = [0, 20, 29, 31]
    assert row.documents.tolist() == [0] * 20 + [1] * 9 + [2] * 2 + [3]
    assert [int(row.ids[start]) for start in starts] == [0, 1000, 2000, 7]
    assert [int(row.positions[start]) for start in starts] == [0, 0, 0, 0]
    assert row.valid == 28


def test_joined_rows_without_masks_are_one_document(tmp_path):
    tokens = counting(tmp_path, [20, 44])
    row = rows_of(tokens, "joined", 32, Sampler("contiguous", 64), masks=False)[0]
    assert not row.documents.any()
    assert row.positions.tolist() == list(range(32))
    assert (row.labels[:-1] == row.ids[1:]).all()


def test_rows_with_far_content_skip_text_with_their_positions(tmp_path):
    tokens = counting(tmp_path, [900])
    sampler = Sampler("multi_chunk", 512, chunks=(4, 4), least=8, unskipped=0, content="far")
    row = rows_of(tokens, "whole", 64, sampler)[0]
    apart = row.positions - row.positions[0]
    assert (row.ids == apart).all()
    assert (row.labels == row.ids + 1).all()
    assert int(apart.max()) > 64
