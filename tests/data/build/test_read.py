"""Every kind of source gives its documents, from any part of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from regraft.data.build.document import Message
from regraft.data.build.read import lines, parts, read
from regraft.data.build.read.report import ReadReport
from regraft.data.build.read.repository import in_order_of_imports, repository_files
from regraft.data.build.schema import Source
from regraft.errors import InputError


def _read(source: Source):
    report = ReadReport()
    found = [
        document
        for part in parts.list_source(source).parts
        for document in read.read_part(source, part, report)
    ]
    return found, report


def _source(**keys) -> Source:
    return Source(name="s", licence="CC0-1.0", **keys)


@pytest.mark.parametrize("size", [1, 7, 40, 10**6])
def test_every_line_is_in_one_part(tmp_path, monkeypatch, size):
    texts = [f"line {i} \u00e9" * (i % 4 + 1) for i in range(30)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts))
    monkeypatch.setattr(parts, "PART_BYTES", size)
    found, report = _read(_source(jsonl=str(path)))
    assert [one.text for one in found] == texts
    assert len({one.id for one in found}) == 30
    assert report.records == 30
    assert list(report.hashes) == ["a.jsonl"]


def test_a_byte_order_mark_before_the_first_line_is_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "a"}\n{"text": "b"}\n')
    found, report = _read(_source(jsonl=str(tmp_path)))
    assert [one.text for one in found] == ["a", "b"]
    assert report.broken == 0


def test_names_of_files_in_another_encoding_are_printable(tmp_path):
    (tmp_path / "code").mkdir()
    for name in (b"caf\xe9.txt", b"code/caf\xe9.py"):
        with open(os.fsencode(tmp_path) + b"/" + name, "w") as file:
            file.write("x = 1")
    ((text,), report) = _read(_source(text=str(tmp_path)))
    assert text.id == r"caf\udce9.txt"
    assert list(report.hashes) == [text.id]
    ((code,), report) = _read(_source(code=str(tmp_path / "code")))
    assert r"caf\udce9.py" in code.text
    assert list(report.hashes) == [r"code/caf\udce9.py"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [("{", "it is not valid JSON"), ('{"body": "a"}', "has no text in its field 'text'; it has")],
)
def test_only_the_broken_lines_that_are_examples_have_their_number_counted(
    tmp_path, monkeypatch, line, problem
):
    counted = []

    def place_in(*place):
        counted.append(place)
        return number(*place)

    number = lines.place_in
    for module in (lines, read):
        monkeypatch.setattr(module, "place_in", place_in)
    (tmp_path / "a.jsonl").write_text(f"{line}\n" * 30)
    found, report = _read(_source(jsonl=str(tmp_path)))
    assert (found, report.broken, len(counted)) == ([], 30, 5)
    assert report.examples[3].startswith("a.jsonl, line 4")
    assert report.examples[4].startswith("a.jsonl, line 5")
    assert problem in report.examples[4]


def test_a_broken_record_of_parquet_has_its_number(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"text": "a", "key": key} for key in (1, 2, None)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=1)
    _, report = _read(_source(parquet=str(tmp_path), id_field="key"))
    assert report.examples == ["a.parquet, record 3 has no id in its field 'key'"]


def test_parquet_is_read_by_row_groups(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"body": f"text {i}", "key": i, "meta": None} for i in range(25)]
    rows[3]["meta"] = '{"redpajama_set_name": "RedPajamaBook"}'
    rows[4]["body"] = None
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=4)
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    source = _source(parquet=str(tmp_path), field="body", id_field="key")
    found, report = _read(source)
    assert [one.id for one in found] == [str(i) for i in range(25) if i not in (3, 4)]
    assert (report.books3, report.empty, report.records) == (1, 1, 25)
    place = _read(_source(parquet=str(tmp_path), field="body"))[0][-1].id
    assert place == "a.parquet:24"


def test_conversations_have_their_turns(tmp_path):
    path = tmp_path / "c.jsonl"
    talks = [
        {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "c?"}, {"from": "gpt", "value": "d"}]},
        {"prompt": "e?", "response": "f"},
        {"messages": [{"role": "nobody", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
    ]
    path.write_text("\n".join(map(json.dumps, talks)))
    found, report = _read(_source(jsonl=str(path), chat=True))
    assert [one.text for one in found] == ["a?\n\nb", "c?\n\nd", "e?\n\nf"]
    assert found[1].messages == (Message("user", "c?"), Message("assistant", "d"))
    assert report.broken == 2
    assert "the role 'nobody'" in report.examples[0]
    assert "more than a role and a content" in report.examples[1]


@pytest.mark.parametrize("limit", [1, 7, 8, 30])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_limit_takes_the_first_records(tmp_path, monkeypatch, kind, limit):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    rows = [{"text": f"text {i}"} for i in range(20)]
    for name, part in (("a", rows[:8]), ("b", rows[8:])):
        if kind == "parquet":
            parquet.write_table(Table.from_pylist(part), tmp_path / name, row_group_size=3)
        else:
            written = [*map(json.dumps, part[:2]), "{", *map(json.dumps, part[2:])]
            (tmp_path / name).write_text("\n".join(written) + "\n")
    monkeypatch.setattr(parts, "PART_BYTES", 20)
    found, report = _read(_source(**{kind: str(tmp_path / "*")}, limit=limit))
    assert report.records == min(limit, 20 if kind == "parquet" else 22)
    assert report.records == len(found) + report.broken
    assert [one.text for one in found] == [row["text"] for row in rows[: len(found)]]
    assert list(report.hashes) == (["a"] if limit < 9 else ["a", "b"])


def test_a_long_text_becomes_documents_cut_between_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_LONGEST", 100)
    monkeypatch.setattr(lines, "_BLOCK", 16)
    text = "\n".join(f"line {i} \u4e2d" for i in range(60))
    (tmp_path / "a.txt").write_text("\ufeff" + text)
    found, _ = _read(_source(text=str(tmp_path)))
    assert "".join(one.text for one in found) == text
    assert all(len(one.text) <= 100 for one in found)
    assert all(one.text.endswith("\n") for one in found[:-1])
    assert [one.id for one in found[:2]] == ["a.txt", "a.txt:1"]


def test_separators_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_BLOCK", 5)
    texts = ["one", "two and more", "three"]
    (tmp_path / "a.txt").write_text("<end>".join(texts))
    found, _ = _read(_source(text=str(tmp_path / "a.txt"), separator="<end>"))
    assert [one.text for one in found] == texts


def test_modules_come_after_those_that_they_import():
    files = {
        "README.md": "about",
        "pkg/__init__.py": "from .main import run",
        "pkg/a.py": "import pkg.b, os\nfrom pkg import c as d",
        "pkg/b.py": "from .c import x\nfrom .a import y",  # a cycle
        "pkg/c.py": "import json",
        "pkg/main.py": "from . import a",
    }
    order = in_order_of_imports(list(files.items()))
    assert sorted(order) == sorted(files)
    assert order == [
        "README.md", "pkg/c.py", "pkg/b.py", "pkg/a.py", "pkg/main.py", "pkg/__init__.py"
    ]  # fmt: skip


def test_files_of_code_leave_out_packages_and_data(tmp_path: Path):
    for name in ("b.py", "a/c.rs", ".git/x.py", "node_modules/y.js", "z.bin", "Makefile"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    (tmp_path / "large.py").write_text("x" * 1_000_001)
    assert repository_files(tmp_path) == ["Makefile", "a/c.rs", "b.py"]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("none", "The source 's': .*none is no folder of code"),
        ("empty", "The source 's' has no files of code"),
    ],
)
def test_a_source_of_code_without_code_is_refused(tmp_path, folder, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "picture.png").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        parts.list_source(_source(code=str(tmp_path / folder)))
