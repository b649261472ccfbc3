"""Reads the files that a user gives: regular files only, and JSON within limits.

A FIFO, a socket or a device is refused at once: reading it might wait forever. One decoder reads
JSON; deep nesting, numbers beyond any format and lone surrogates (which no tokenizer or UTF-8 file
takes) are errors that name the file.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from io import BufferedReader, FileIO, TextIOWrapper
from pathlib import Path
from typing import Any

from regraft.errors import InputError

JsonObject = dict[str, Any]
"""A JSON object whose keys are not ours to type: another program's file, a server's reply, or a
record that its reader checks."""

_MAX_DEPTH = 100  # of lists and objects; what walks over them later needs several calls a level
_MOST_DIGITS = 100  # of an integer; the largest float has 309, token ids and sizes have 20
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def open_file(path: str | Path, error: type[InputError] = InputError) -> FileIO:
    """A regular file, opened for reading without a buffer. Raises `error` for anything else."""
    try:
        # without O_NONBLOCK, opening a FIFO waits for a writer
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as cause:
        raise unreadable(path, cause, error) from cause
    if kind := special_kind(os.fstat(fd).st_mode):
        os.close(fd)
        raise error(f"{path} is {kind}, not a file; give a regular file.")
    return FileIO(fd)


def special_kind(mode: int) -> str | None:
    """The kind of file of an `st_mode`, such as 'a FIFO' or 'a folder'; None for a regular file."""
    for test, kind in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return kind
    return None


def unreadable(
    path: str | Path, cause: OSError | ValueError, error: type[InputError] = InputError
) -> InputError:
    """The error for a file that the operating system does not open or read."""
    reason = getattr(cause, "strerror", None) or cause
    name = getattr(cause, "filename", None) or path
    return error(
        f"{name} cannot be read ({reason}); check that it exists and that you may read it."
    )


def read_bytes(path: str | Path, error: type[InputError] = InputError) -> bytes:
    """The content of a regular file. Raises `error`."""
    with open_file(path, error) as file:
        try:
            return file.readall()
        except OSError as cause:
            raise unreadable(path, cause, error) from cause


def read_text(path: str | Path, error: type[InputError] = InputError) -> str:
    """The content of a file in UTF-8. Raises `error`."""
    try:
        return read_bytes(path, error).decode("utf-8")
    except UnicodeDecodeError as cause:
        raise error(f"{path} is not UTF-8 text (byte {cause.start}); convert it first.") from None


def read_lines(path: str | Path, error: type[InputError] = InputError) -> Iterator[str]:
    """The lines of a file in UTF-8, one at a time, line ends kept. Raises `error`."""
    with TextIOWrapper(BufferedReader(open_file(path, error)), encoding="utf-8") as file:
        try:
            yield from file
        except UnicodeDecodeError:
            raise error(f"{path} is not UTF-8 text; convert it first.") from None
        except OSError as cause:
            raise unreadable(path, cause, error) from cause


def read_json(
    path: str | Path,
    error: type[InputError] = InputError,
    *,
    remedy: str = "correct it or download it again",
) -> Any:
    """The value of a JSON file. Raises `error`, which ends in `remedy`."""
    return parse_json(read_bytes(path, error), str(path), error, remedy=remedy)


def read_json_object(
    path: str | Path,
    error: type[InputError] = InputError,
    *,
    remedy: str = "correct it or download it again",
) -> JsonObject:
    """The JSON object that a file holds. Raises `error`, which ends in `remedy`."""
    value = read_json(path, error, remedy=remedy)
    if not isinstance(value, dict):
        raise error(f"{path} is not a JSON object; {remedy}.")
    return value


def parse_json(
    text: str | bytes,
    where: str,
    error: type[InputError] = InputError,
    *,
    remedy: str = "correct it or download it again",
) -> Any:
    """The value of JSON text. Raises `error`: '{where} is not valid JSON (...); {remedy}.'"""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = _DECODER.decode(text)
        if text.count("{") + text.count("[") > _MAX_DEPTH and _is_deeper(value, _MAX_DEPTH):
            raise RecursionError
        if _SURROGATE_ESCAPE.search(text):  # rare, so the check costs nothing elsewhere
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise error(f"{where} is not valid JSON (it is nested too deep); {remedy}.") from None
    except UnicodeEncodeError:
        raise error(
            f"{where} is not valid JSON (half of a surrogate pair, which is no character); "
            f"{remedy}."
        ) from None
    except ValueError as cause:
        reason = " ".join(str(cause).split())
        raise error(f"{where} is not valid JSON ({reason}); {remedy}.") from None
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects nest deeper."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _float(text: str) -> float:
    value = float(text)
    if abs(value) > sys.float_info.max:
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_float)
