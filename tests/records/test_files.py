"""Reading and writing records: round trip, and errors that name the file and the key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from regraft.errors import CheckpointError
from regraft.records import (
    SCHEMA_VERSION,
    AdapterFiles,
    BaseRecord,
    ContextRecord,
    GraftContext,
    GraftRecord,
    ModelRecord,
    dump_json,
    read_record,
    to_json,
    versions,
    write_record,
)

CONTEXT = ContextRecord(
    rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    max_position_embeddings=64,
    original_max_position_embeddings=None,
)
GRAFT = GraftRecord(
    adapter=AdapterFiles(name="a", sha256={"adapter_config.json": "0"}),
    base=BaseRecord(name=None),
    checkpoint=ModelRecord(name="m", revision=None, fingerprint="f"),
    context=GraftContext(checkpoint=CONTEXT, output=CONTEXT, policy="given"),
    lineage=None,
    already_present=None,
    arguments={"scale": 1, "context": None},
    versions=versions(),
)


def broken(change: Any) -> Any:
    value = to_json(GRAFT)
    change(value)
    return value


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "regraft.json"
    write_record(path, GRAFT)
    assert read_record(path, GraftRecord, "repair it") == GRAFT
    value = json.loads(path.read_text())
    assert value["schema_version"] == SCHEMA_VERSION
    assert "plan" not in value  # None by default
    assert value["lineage"] is None  # this None is a value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (broken(lambda v: v.pop("checkpoint")), "lacks the key 'checkpoint'"),
        (broken(lambda v: v["checkpoint"].pop("name")), "lacks the key 'checkpoint.name'"),
        (
            broken(lambda v: v["context"]["output"].update(max_position_embeddings="many")),
            "'context.output.max_position_embeddings' should be a valid integer, not 'many'",
        ),
        (
            broken(lambda v: v["context"]["output"].update(max_position_embeddings=True)),
            "should be a valid integer, not True",
        ),
        (broken(lambda v: v.update(kind="adapter")), "'kind' should be 'graft', not 'adapter'"),
        (broken(lambda v: v.update(versions=["x"])), "'versions' should be an object"),
        (broken(lambda v: v.update(schema_version=99)), "schema version 99 and this regraft reads"),
        (broken(lambda v: v.update(schema_version=1)), "make the folder again with this regraft"),
        ([], "is not a JSON object"),
    ],
)
def test_error_names_the_wrong_key(value: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "regraft.json"
    path.write_text(json.dumps(value))
    with pytest.raises(CheckpointError) as error:
        read_record(path, GraftRecord, "repair it")
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [b"{", b"\xff\xfe", b"[" * 5000, b'{"a": NaN}', b'{"a": "\\ud800"}', b""],
    ids=["cut", "no utf-8", "deep", "nan", "lone surrogate", "empty"],
)
def test_invalid_json_is_reported_in_one_sentence(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "regraft.json"
    path.write_bytes(text)
    with pytest.raises(CheckpointError, match="is not valid JSON") as error:
        read_record(path, GraftRecord, "repair it")
    assert "\n" not in str(error.value)


def test_dump_json_writes_only_valid_json(tmp_path: Path) -> None:
    @dataclass
    class Named:
        name: str

    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json({"loss": float("nan")})
    assert json.loads(dump_json(Named("caf\u00e9 \udcff"))) == {"name": "caf\u00e9 ?"}
