"""Records as JSON files.

`write_record` and `read_record` are the only ways to and from a file, so that every command can
read what another command wrote.
"""

from __future__ import annotations

import dataclasses
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from regraft.errors import CheckpointError, short_repr, writing
from regraft.input_files import read_bytes
from regraft.records.common import SCHEMA_VERSION
from regraft.write import json_text

Record = TypeVar("Record")


def to_json(value: Any) -> Any:
    """`value` with every dataclass in it as a dict.

    Fields whose default is None are left out where they are None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: to_json(content)
            for item in dataclasses.fields(value)
            if (content := getattr(value, item.name)) is not None or item.default is not None
        }
    if isinstance(value, dict):
        return {key: to_json(content) for key, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(content) for content in value]
    return value


def dump_json(value: Any) -> bytes:
    """Indented JSON in UTF-8 that ends in a newline.

    Surrogates, as in an undecodable file name, become '?'. Raises ValueError for NaN and infinity,
    which JSON cannot express.
    """
    return json_text(to_json(value)).encode("utf-8", "replace")


def write_record(path: Path, record: Any) -> None:
    """Write a record as JSON. Raises OutputError naming the file."""
    with writing(path):
        path.write_bytes(dump_json(record))


def read_record(path: Path, kind: type[Record], advice: str) -> Record:
    """Read a record of the dataclass `kind`.

    advice: what the user can do about a broken file, the end of each message. Raises
    CheckpointError naming the file and the key that is missing or of another type.
    """
    from pydantic import ValidationError
    from pydantic_core import from_json

    data = read_bytes(path, CheckpointError)
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); {advice}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; {advice}.")
    number = value.get("schema_version")
    if isinstance(number, int) and number != SCHEMA_VERSION:
        newer = number > SCHEMA_VERSION
        raise CheckpointError(
            f"{path} has schema version {number} and this regraft reads {SCHEMA_VERSION}; "
            f"{'update regraft' if newer else 'make the folder again with this regraft'}."
        )
    try:
        return cast(Record, _reader(cast(Any, kind)).validate_json(data, strict=True))
    except ValidationError as error:
        problems = error.errors(include_url=False)
    first = problems[0]
    key = _key(first["loc"])
    if first["type"] == "missing":
        raise CheckpointError(f"{path} lacks the key '{key}'; {advice}.")
    same = [p for p in problems if _key(p["loc"]) == key]  # the alternatives of a union
    expected = " or ".join(p["msg"].removeprefix("Input should be ") for p in same)
    raise CheckpointError(
        f"{path}: '{key}' should be {expected}, not {short_repr(first['input'])}; {advice}."
    )


def _key(location: tuple[int | str, ...]) -> str:
    """pydantic's error location as 'a.b.0', without the union member's name at its end."""
    parts = [str(part) for part in location]
    if len(parts) > 1 and re.fullmatch(r"(str|int|bool|float|list\[\w+\])", parts[-1]):
        parts.pop()
    return ".".join(parts)


@lru_cache
def _reader(kind: Any) -> Any:
    from pydantic import TypeAdapter  # a sixth of a second, and not every command reads a record

    return TypeAdapter(kind)
