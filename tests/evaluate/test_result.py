"""result.json is read strictly: what it lacks is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluated import cell, record

from regraft.errors import CheckpointError
from regraft.evaluate.result import FILE, read_result
from regraft.records import to_json, write_record


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = record(cells={"m": {"needle": {4096: cell(0.5, depths={"0": 0.5})}}})
    write_record(tmp_path / FILE, written)
    assert read_result(tmp_path) == written


def test_a_key_that_is_missing_or_of_another_type_is_named(tmp_path: Path) -> None:
    data = json.loads(json.dumps(to_json(record(cells={"m": {"needle": {64: cell(0.5)}}}))))
    data["cells"]["m"]["needle"]["64"]["score"] = "half"
    (tmp_path / FILE).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"cells\.m\.needle\.64\.score"):
        read_result(tmp_path)
    del data["cells"]
    (tmp_path / FILE).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="lacks the key 'cells'"):
        read_result(tmp_path)
