"""A Hub dataset is read where it is: by ranges of its files, at one commit."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer
from scripts import Scripts

from regraft.data.build.read import hub, read
from regraft.data.build.read.parts import Part, Piece
from regraft.data.build.read.report import ReadReport
from regraft.data.build.schema import Source
from regraft.errors import InputError

parquet = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")
OWN = f"hf://datasets/org/data@{COMMIT}"
SCRIPT = """
import json, sys
from regraft.data.build.read import parts
from regraft.data.build.read.read import read_part
from regraft.data.build.read.report import ReadReport
from regraft.data.build.schema import Source

parts.PART_BYTES = 100_000
for keys in json.loads(sys.argv[1]):
    source = Source(name="s", licence="CC0-1.0", **keys)
    listing, report = parts.list_source(source), ReadReport()
    found = [one for part in listing.parts for one in read_part(source, part, report)]
    print(json.dumps([[(one.id, one.text) for one in found], listing.state, listing.files,
                      len(listing.parts), report.broken, report.examples]))
"""


def _read(scripts: Scripts, folder: Path, repo: Path, *sources: dict) -> tuple[list, HubServer]:
    """What a client reads of sources, and the server of which it asked for it."""
    with HubServer({"org/data": repo, "org/same": repo}) as server:
        env = server.env(folder / "cache", HF_DATASETS_CACHE=str(folder / "cache" / "datasets"))
        done = scripts.run(SCRIPT, json.dumps(sources), env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], server


def _ranges(server: HubServer, dataset: str) -> dict[str, int]:
    """Bytes that were asked for of the files of a dataset of which ranges were."""
    result: dict[str, int] = {}
    for _, path, asked in server.log:
        if path.startswith(f"/datasets/{dataset}/") and asked is not None:
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            name = path.rpartition("/")[2]
            result[name] = result.get(name, 0) + last - first + 1
    return result


def test_row_groups_are_read_by_ranges(scripts: Scripts, tmp_path: Path) -> None:
    from pyarrow import Table

    repo = tmp_path / "repo"
    repo.mkdir()
    rng = random.Random(0)
    rows = [{"text": f"text {i}", "image": rng.randbytes(3000)} for i in range(400)]
    for number in range(2):
        table = Table.from_pylist(rows[number * 200 : number * 200 + 200])
        parquet.write_table(table, repo / f"train-{number}.parquet", row_group_size=50)
    results, server = _read(
        scripts, tmp_path, repo,
        {"hub": "org/data"}, {"hub": f"org/same@{COMMIT}", "limit": 120},
    )  # fmt: skip
    (found, state, files, parts, *_), (first, _, opened, needed, *_) = results
    assert found == [[f"train-{i // 200}.parquet:{i % 200}", f"text {i}"] for i in range(400)]
    assert (state, files, parts) == ([[COMMIT, 0, 0]], 2, 8)
    assert [text for _, text in first] == [f"text {i}" for i in range(120)]
    assert (opened, needed) == (1, 3)
    assert server.downloads() == []
    size = (repo / "train-0.parquet").stat().st_size
    ranges = _ranges(server, "org/data")
    assert ranges.keys() == {"train-0.parquet", "train-1.parquet"}
    assert max(ranges.values()) < size / 2  # the column of texts and, twice, the footer
    assert _ranges(server, "org/same").keys() == {"train-0.parquet"}
    stored = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in stored) < 10_000


def test_lines_are_read_by_ranges_and_broken_ones_counted(scripts: Scripts, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    lines = [json.dumps({"text": f"text {i}"}) for i in range(9000)]
    lines[1] = "{broken"
    (repo / "README.md").write_text(
        "---\nconfigs:\n- {config_name: one, data_files: a.jsonl}\n"
        "- {config_name: two, data_files: [{split: long, path: b.jsonl}]}\n---\n"
    )
    (repo / "a.jsonl").write_text("\n".join(lines))
    (repo / "b.jsonl").write_text('{"text": "other"}')
    results, server = _read(
        scripts, tmp_path, repo,
        {"hub": "org/data", "subset": "one"},
        {"hub": "org/data", "subset": "two", "split": "long", "limit": 10},
    )  # fmt: skip
    (found, _, files, parts, broken, examples), (other, *_) = results
    assert [text for _, text in found] == [f"text {i}" for i in range(9000) if i != 1]
    assert (files, parts, broken) == (1, 2, 1)
    assert examples[0].startswith(f"a.jsonl, byte {len(lines[0]) + 1}: it is not valid JSON")
    assert other == [["b.jsonl:0", "other"]]
    assert server.downloads() == ["README.md"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"{OWN}/x.csv", "has x.csv, and only its own Parquet files and JSON lines are streamed"),
        ("file:///etc/a.jsonl", "has file:///etc/a.jsonl, and only its own"),
        ("hf://datasets/org/other@1/a.jsonl", "has hf://datasets/org/other@1/a.jsonl, and only"),
        (None, "has no split 'train'; it has none"),
    ],
)
def test_other_files_are_refused(monkeypatch, path, message) -> None:
    class Builder:
        hash = COMMIT

        class config:
            data_files = None if path is None else {"train": [path]}

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: Builder)
    with pytest.raises(InputError, match=f"^The dataset org/data {message}"):
        hub.hub_split("org/data", None, "train")


@pytest.mark.parametrize("dataset", ["org/data", "squad"])
@pytest.mark.parametrize("name", ["a.jsonl", "data/a@1.jsonl"])
def test_a_file_is_named_by_its_place_in_the_dataset(dataset, name) -> None:
    assert hub.name_of(f"hf://datasets/{dataset}@{COMMIT}/{name}") == name


def test_only_errors_of_the_transfer_are_blamed_on_the_network(monkeypatch) -> None:
    def broken(*_):
        yield "a:0", {"text": "a"}
        raise ConnectionError("reset by peer")

    part = Part("s", 0, (Piece(f"{OWN}/a.jsonl"),))
    source = Source(name="s", licence="CC0-1.0", hub="org/data")
    monkeypatch.setattr(read, "_rows", broken)
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read \(ConnectionError: reset by"):
        list(read.read_part(source, part, ReadReport()))
    monkeypatch.setattr(read, "_document", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(read.read_part(source, part, ReadReport()))


def test_a_failing_transfer_is_a_sentence(monkeypatch) -> None:
    class Broken:
        def open(self, *_, **__):
            raise ConnectionError("reset\nby peer")

    monkeypatch.setattr(hub, "_file_system", Broken)
    with pytest.raises(InputError, match=r"a\.parquet cannot be read \(ConnectionError: reset by"):
        hub.open_hub_parquet(f"{OWN}/a.parquet")
