"""Texts of evaluation prompts from the files of an evaluation or of a benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regraft.input_files import parse_json, read_json, read_lines, read_text

_LEAST = 40  # characters: shorter strings are labels


def prompt_texts(path: Path) -> Iterator[str]:
    """Every longer string in a .json or .jsonl file (such as result.json of `regraft evaluate`,
    with its samples), or the text of any other file. Raises InputError where it is unreadable."""
    if path.suffix == ".json":
        yield from _strings(read_json(path))
    elif path.suffix == ".jsonl":
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                yield from _strings(parse_json(line, f"{path}, line {number}"))
    else:
        yield read_text(path)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if len(value) >= _LEAST:
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
