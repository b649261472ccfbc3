"""A build writes the documents of its sources, the same for any number of processes and after a
kill, and says in a sentence what is wrong with its input."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from bars import shares_of

import regraft
from regraft.data.build import build, pool
from regraft.data.build.read import parts
from regraft.data.build.recipe import Recipe
from regraft.data.build.record import read_dataset
from regraft.data.build.shards import Shards
from regraft.errors import InputError

WORDS = [f"word{i}" for i in range(300)]
RECIPE = """
sources:
  - name: books
    licence: CC0-1.0
    jsonl: books.jsonl
    id_field: name
    broken: 0.05
    steps:
      - quality: {characters: 100, compression: [0, 1]}
      - length: {maximum: 600}
  - name: code
    licence: Apache-2.0
    code: repositories/*
    order: imports
    steps: [tasks: {kinds: [far_middle], share: 1}]
  - name: notes
    licence: CC0-1.0
    text: notes
    separator: "\\n\\n"
    encodings: [utf-8, cp1252]
    rows: packed
    steps:
      - length: {join: 100}
steps:
  - dedup: {near: false}
output: {tokenizer: bytes, shard: 20kB}
mixes:
  long: {books: 3, notes: 1}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The texts of the recipe, as the working directory."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    lines = []
    for number in range(60):
        text = ". ".join(" ".join(rng.sample(WORDS, 9)) for _ in range(rng.randint(1, 30)))
        lines.append(json.dumps({"name": f"b{number % 58}", "text": text, "meta": {"set": "Web"}}))
    lines[7] = '{"text": '
    lines[9] = json.dumps({"name": "x", "text": "of nobody " * 40, "meta": {"set": "Books3"}})
    lines[11] = lines[10].replace('"b10"', '"b99"')
    lines[13] = ""
    (tmp_path / "books.jsonl").write_text("\n".join(lines), "utf-8")
    for name, text in {
        "one/a.py": "import b\nx = 1\n", "one/b.py": "y = 2\n", "one/.git/config": "z",
        "two/inner/c.rs": "fn main() {}\n", "two/data.bin": "no code",
    }.items():  # fmt: skip
        path = tmp_path / "repositories" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("first \u00e9\n\n\n\nsecond\n\n" + "third " * 30)
    (tmp_path / "notes" / "b.md").write_bytes(b"caf\xe9 " * 20)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def _build(out: str = "text", **options):
    with pytest.warns(UserWarning, match="'books' "):
        return regraft.build_data("recipe.yaml", out, **options)


def _rows(folder: Path, source: str):
    from pyarrow import parquet

    files = sorted((folder / "data" / source).glob("*.parquet"))
    return [row for file in files for row in parquet.read_table(file).to_pylist()]


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_build_has_the_documents_and_counts_of_every_source(folder, monkeypatch):
    read, whole = shares_of(monkeypatch, "Reading"), shares_of(monkeypatch, "Working on sources")
    record = _build()
    assert len(set(read)) > 57  # documents of books; the part of each source is a third
    assert sum(after - before > 0.2 for before, after in pairwise([0, *read])) == 2  # the others
    assert read[-1] == pytest.approx(1)
    assert len(set(whole)) > 2  # documents of notes, the one source with a step on all of it
    assert whole[-1] == pytest.approx(1)
    assert read_dataset("text") == record
    books = record.sources["books"]
    assert (books.report.records, books.report.broken, books.report.books3) == (59, 1, 1)
    assert books.report.examples == [
        "books.jsonl, line 8: it is not valid JSON (Expecting value: line 1 column 9 (char 8))"
    ]
    rows = _rows(folder / "text", "books")
    assert books.repeated_ids == sum("~" in row["id"] for row in rows) > 0
    assert len(rows) == books.out.documents
    assert sum(row["tokens"] for row in rows) == books.out.tokens
    assert all(row["tokens"] == len(row["text"].encode()) <= 600 for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert {"b10#1", "b10"} & {row["id"] for row in rows}
    assert not any("of nobody" in row["text"] for row in rows)
    assert {one["name"] for one in rows[0]["scores"]} == {
        "quality.compression", "quality.repetition"
    }  # fmt: skip
    steps = {step.step: step for step in record.steps}
    assert list(steps) == ["books/1-quality", "books/2-length", "code/1-tasks", "notes/1-length",
                           "all/1-dedup"]  # fmt: skip
    assert steps["books/1-quality"].into.documents == books.read.documents == 57
    assert steps["all/1-dedup"].dropped["exact duplicate"] >= 1
    code = [(row["id"], row["text"]) for row in _rows(folder / "text", "code")]
    assert code == [
        ("one", "===== b.py =====\ny = 2\n\n===== a.py =====\nimport b\nx = 1\n"),
        ("two", "===== inner/c.rs =====\nfn main() {}\n"),
    ]
    (note,) = _rows(folder / "text", "notes")[:1]
    assert note["text"].startswith("first \u00e9\n\nsecond\n\nthird third")
    assert record.mixes == {"long": {"books": 3, "notes": 1}}
    assert [shard.source for shard in record.shards].count("books") > 1
    assert all(shard.bytes < 20_000 for shard in record.shards)


def test_card_and_page_have_licences_figures_and_warnings(folder):
    with (folder / "books.jsonl").open("a") as file:
        file.write('\n{"name": "blank", "text": " "}')
    with pytest.warns(UserWarning, match=r"No document of 'code' has a task of the step code/1-t"):
        record = _build()
    card, page = (folder / "text" / name for name in ("README.md", "index.html"))
    assert "| books | CC0-1.0 | jsonl books.jsonl | 1 | 57 documents" in card.read_text()
    assert "| long | 75.0% | 0.0% | 25.0% |" in card.read_text()
    html = page.read_text()
    assert (folder / "text" / "map.png").is_file()
    assert "](map.png)" in card.read_text()
    assert html.count('src="data:image/png;base64,') == 1
    books = read_dataset("text").sources["books"]
    read = round(books.read.characters * books.out.tokens / books.out.characters)
    assert f"| {read:,} (" in card.read_text()  # tokens before the steps
    assert f'<td class="number">{books.out.documents:,} (' in html
    assert html.count("<svg") == 3 + 5  # lengths of the sources, scores of quality
    for words in ("is broken and left out, such as: books.jsonl, line 8: it is not valid JSON",
                  "is without text and left out."):  # fmt: skip
        assert f"Of books, 1 of 60 records {words}" in card.read_text()
        assert f"Of books, 1 of 60 records {words}" in html
    assert [warning.split(" of ")[1] for warning in record.warnings] == [
        "'books' had the id", "'code' has a task"
    ]  # fmt: skip
    for warning in record.warnings:
        assert f"\n{warning}\n" in card.read_text()
        assert f"<p>{warning}</p>".replace("'", "&#39;") in html
    assert (folder / "text" / "recipe.yaml").read_text() == RECIPE


def test_parts_and_processes_do_not_change_a_byte(folder, monkeypatch):
    _build("a/text")
    monkeypatch.setattr(pool, "_CONTEXT", "fork")
    monkeypatch.setattr(parts, "PART_BYTES", 3000)
    _build("b/text")
    _build("c/text", workers=2)
    assert _files(folder / "c/text") == _files(folder / "b/text")
    assert _files(folder / "b/text/data") == _files(folder / "a/text/data")
    assert len(parts.list_source(Recipe.read("recipe.yaml").body.sources[0]).parts) > 5


@pytest.fixture
def absolute(folder: Path) -> str:
    """The recipe for a process with another working directory."""
    text = RECIPE
    for name in ("books.jsonl", "repositories/*", "text: notes"):
        key, _, path = name.rpartition(" ")
        text = text.replace(name, f"{key} {folder / path}".strip())
    (folder / "absolute.yaml").write_text(text)
    return str(folder / "absolute.yaml")


def test_a_killed_build_resumes_to_the_same_bytes(folder, absolute, children):
    done = children.run("data", "build", absolute, "-o", folder / "a/text")
    assert done["code"] == 0, done["err"]
    arguments = ("data", "build", absolute, "-o", folder / "b/text")
    killed = children.run(*arguments, die=int(0.8 * done["calls"]))
    assert killed["code"] == -9
    assert not (folder / "b/text").exists()
    assert "--resume continues it" in children.run(*arguments)["err"]
    resumed = children.run(*arguments, "--resume")
    assert resumed["code"] == 0, resumed["err"]
    assert resumed["calls"] < done["calls"]  # finished parts are not read again
    assert _files(folder / "b/text") == _files(folder / "a/text")


def test_a_resumed_build_does_no_finished_piece_again(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("stopped")

    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one two"}))
    (tmp_path / "recipe.yaml").write_text(
        f"sources: [{{name: a, licence: CC0-1.0, jsonl: {tmp_path}/a.jsonl}}]\n"
        "output: {tokenizer: bytes}\n"
    )
    arguments = (tmp_path / "recipe.yaml", tmp_path / "text")
    with monkeypatch.context() as patch:
        patch.setattr(Shards, "add", fail)  # when all parts are done
        with pytest.raises(RuntimeError, match="stopped"):
            regraft.build_data(*arguments)
    monkeypatch.setattr(build, "do_part", fail)
    record = regraft.build_data(*arguments, resume=True)
    assert record.sources["a"].out.documents == 1


def test_a_full_disk_keeps_what_is_done(folder, absolute, children):
    arguments = ("data", "build", absolute, "-o", folder / "text")
    full = children.run(*arguments, largest=9_000)
    assert full["code"] == 1
    assert "file this large" in full["err"]
    assert children.run(*arguments, "--resume")["code"] == 0


def test_a_dry_run_writes_nothing(folder):
    record = regraft.build_data("recipe.yaml", None, dry_run=True)
    assert record.plan is not None
    assert record.plan["source books"] == "1 file in 1 part"
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("broken: 0.05", "broken: 0.01"),
         r"line 3: 1 of 59 records of 'books' are broken \(1.69%; books.jsonl, line 8: it is"),
        (("name: books\n    licence: CC0-1.0", "name: books"), r"line 3: 'licence' is missing"),
        (("name: books", "name: Books3"), r"line 3: 'Books3' is text of Books3, whose books are"),
        (("jsonl: books.jsonl", "jsonl: no.jsonl"), r"line 3: .*no such file or folder"),
        (("encodings: [utf-8, cp1252]", "encodings: [utf-8]"),
         r"1 of 5 records of 'notes' are broken \(20.00%; b.md is not utf-8 text"),
        (("[utf-8, cp1252]", "[utf9]"), r"line 20: 'utf9' is not an encoding"),
        (("[utf-8, cp1252]", "[rot13]"), r"line 20: 'rot13' is not an encoding"),
        (("[utf-8, cp1252]", "[undefined]"), r"line 20: 'undefined' is not an encoding"),
        (("name: notes", "name: all"), r"line 16: 'all' is what the steps of the recipe"),
        (("{books: 3, notes: 1}", "{boks: 3}"), r"'boks' is not a source \(did you mean books\?"),
        (("- dedup:", "- dedupe:"), r"'dedupe' is not a key here \(did you mean dedup\?\)"),
        (("characters: 100", "characters: 99999"),
         r"No document of 'books' passed .*books/1-quality: too few characters \(57\)\)"),
        (("near: false", "prompts: [a.txt]"), r"line 25: dedup: there is no file a.txt"),
        (("order: imports", "order: imports\n    separator: x"), r"'separator' is of text only"),
        (("text: notes", "text: empty"), r"line 16: 'notes' has no text; give another source"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*'books' are broken")
def test_bad_input_is_one_sentence(folder, change, message):
    (folder / "empty").mkdir()
    (folder / "empty" / "a.txt").write_text("  \n")
    assert change[0] in RECIPE
    (folder / "recipe.yaml").write_text(RECIPE.replace(*change))
    with pytest.raises(InputError, match=message):
        regraft.build_data("recipe.yaml", "text")
    assert not (folder / "text").exists()


@pytest.mark.parametrize(("share", "chat"), [(1, True), (0.5, False)])
def test_a_source_is_trained_as_conversations_where_all_of_it_has_turns(
    tmp_path, recwarn, share, chat
):
    lines = [json.dumps({"text": "One short sentence here. " * 20})] * 12
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "recipe.yaml").write_text(
        f"sources: [{{name: a, licence: CC0-1.0, jsonl: {tmp_path}/a.jsonl}}]\n"
        f"steps: [tasks: {{share: {share}, form: messages, kinds: [retrieval]}}]\n"
        "output: {tokenizer: bytes}\n"
    )
    record = regraft.build_data(tmp_path / "recipe.yaml", tmp_path / "out")
    assert record.sources["a"].chat is chat
    told = [str(one.message) for one in recwarn if "documents of 'a' are conv" in str(one.message)]
    assert bool(told) is not chat


def test_the_output_may_not_overlap_a_source(folder):
    with pytest.raises(InputError, match="notes"):
        regraft.build_data("recipe.yaml", "notes/out")
