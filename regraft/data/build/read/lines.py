"""Text files and JSON lines in several encodings, in bounded memory."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from regraft.data.build.read.hub import is_hub, open_hub_file
from regraft.data.build.read.report import ReadReport
from regraft.errors import InputError
from regraft.input_files import open_file, parse_json

_BLOCK = 1 << 20  # bytes
_LONGEST = 64 << 20  # characters of a text; a longer one becomes several documents
_LONGEST_LINE = 256 << 20  # bytes of a JSON line
_BREAKS = ("\n\n", "\n", " ")


def read_texts(
    path: Path, name: str, encodings: Sequence[str], separator: str | None, report: ReadReport
) -> Iterator[tuple[int, str]]:
    """(number, text) of the documents of a text file: its parts between separators, or all of it,
    and the pieces of one that is longer than 64 MB.

    A file in none of the encodings counts as one broken record.
    """
    encoding = _encoding_of(path, encodings)
    if encoding is None:
        report.records += 1
        report.add_broken(f"{name} is not {' or '.join(encodings)} text")
        return
    yield from cut_texts(_blocks(path, encoding), separator)


def cut_texts(blocks: Iterable[str], separator: str | None = None) -> Iterator[tuple[int, str]]:
    """(number, text) of the documents of a text that comes in blocks: its parts between separators,
    and the pieces of one that is longer than 64 MB. A text without characters is one document."""
    number, rest = 0, ""
    for block in blocks:
        rest += block
        if separator is not None and separator in rest:
            *whole, rest = rest.split(separator)
            for text in whole:
                yield number, text
                number += 1
        while len(rest) > _LONGEST:
            at = _break_before(rest, _LONGEST)
            yield number, rest[:at]
            number, rest = number + 1, rest[at:]
    if rest or number == 0:
        yield number, rest


def read_jsonl(
    path: str, name: str, start: int, stop: int, encodings: Sequence[str], report: ReadReport
) -> Iterator[tuple[str, Any]]:
    """('name:byte', value) of the lines that begin in bytes [start, stop) of a file, which may be
    one of the Hub.

    A line that is in none of the encodings, no JSON or longer than 256 MB counts as broken.
    """
    raw = open_hub_file(path, in_order=True) if is_hub(path) else open_file(path)
    with BufferedReader(raw, _BLOCK) as file:
        if start:
            file.seek(start - 1)
            _skip_line(file)
        while (at := file.tell()) < stop:
            line = file.readline(_LONGEST_LINE)
            if not line.strip():
                continue
            try:
                if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                    _skip_line(file)
                    raise InputError("the line is longer than 256 MB")
                text = _decode(line, encodings).rstrip()
                value = parse_json(text if at else text.removeprefix("\ufeff"), "it")
            except InputError as error:
                report.records += 1
                place = f"{name}, {place_in(path, at)}" if report.has_room else name
                report.add_broken(f"{place}: {str(error).split('; correct it')[0]}")
                continue
            yield f"{name}:{at}", value


def _skip_line(file: IO[bytes]) -> None:
    while (rest := file.readline(_BLOCK)) and not rest.endswith(b"\n"):
        pass


def _decode(line: bytes, encodings: Sequence[str]) -> str:
    for encoding in encodings:
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InputError(f"it is not {' or '.join(encodings)} text")


def place_in(path: str, at: int) -> str:
    """'line N', of the line that begins at byte `at`; 'byte N' in a file of the Hub, since the
    number takes a reading of all that is before it."""
    if is_hub(path):
        return f"byte {at}"
    number = 1
    with open_file(path) as file:
        while at > 0 and (block := file.read(min(_BLOCK, at))):
            number += block.count(b"\n")
            at -= len(block)
    return f"line {number}"


def _encoding_of(path: Path, encodings: Sequence[str]) -> str | None:
    """The first encoding that decodes the whole file."""
    for encoding in encodings:
        try:
            for _ in _blocks(path, encoding):
                pass
        except UnicodeDecodeError:
            continue
        return encoding
    return None


def _blocks(path: Path, encoding: str) -> Iterator[str]:
    """A file's text in blocks, without a byte order mark."""
    decoder = codecs.getincrementaldecoder(encoding)()
    with open_file(path) as file:
        first = True
        while True:
            data = file.read(_BLOCK)
            text = decoder.decode(data, final=not data)
            if first and text:
                text, first = text.removeprefix("\ufeff"), False
            if text:
                yield text
            if not data:
                return


def _break_before(text: str, limit: int) -> int:
    """Where to cut a text at or before `limit`: after a blank line, a line or a space."""
    for sign in _BREAKS:
        at = text.rfind(sign, limit // 2, limit)
        if at > 0:
            return at + len(sign)
    return limit
