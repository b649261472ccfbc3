"""Texts: long documents, short ones with the derivative's skill, held-out text.

Long documents come from the folders that are given: Debian's packages perl-doc, python3.11-doc and
r-cran-janeaustenr, unpacked, or any folder with .txt, .rst and .pod files. Without one they are the
sources of Python's standard library.
"""

from __future__ import annotations

import json
import lzma
import random
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from regraft.data.generate import words

ENDINGS = (".txt", ".rst", ".pod")
SKILL_WORDS = 5
_FORM = "The words {given} in reverse order are {reversed}.\n"
_LEAST = 2000  # characters of a document


def documents(folders: Iterable[Path]) -> Iterator[str]:
    """Every novel, and every file of more than a page."""
    for novels, files in _by_folder(folders):
        yield from novels
        yield from files


def long_documents(folders: Iterable[Path]) -> Iterator[str]:
    """Every novel, and the files joined to texts of 400,000 characters."""
    for novels, files in _by_folder(folders):
        yield from novels
        yield from _joined(files)


def _by_folder(folders: Iterable[Path]) -> Iterator[tuple[Iterator[str], Iterator[str]]]:
    """Novels and other files of each folder."""
    sources = list(folders)
    for folder in sources:
        yield _novels(folder), _files(p for p in folder.rglob("*") if p.suffix in ENDINGS)
    if not sources:
        yield iter(()), _files(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))


def _files(paths: Iterable[Path]) -> Iterator[str]:
    """In the order of their paths."""
    for path in sorted(paths):
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(text) >= _LEAST and "site-packages" not in path.parts:
            yield text.strip()


def _joined(texts: Iterable[str], characters: int = 400_000) -> Iterator[str]:
    """Texts one after another, until a document has that many characters."""
    joined = ""
    for text in texts:
        joined += text + "\n\n"
        if len(joined) >= characters:
            yield joined
            joined = ""
    if joined:
        yield joined


def _novels(folder: Path) -> Iterator[str]:
    """The character vectors of an R package's data (its Rdata.rdb is a row of zlib streams)."""
    for path in sorted(folder.rglob("Rdata.rdb")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            stream = zlib.decompressobj()
            vector = stream.decompress(data[at + 4 :])
            at = len(data) - len(stream.unused_data)
            yield "\n".join(_strings(vector))


def _strings(vector: bytes) -> Iterator[str]:
    """Strings of a serialised R vector: a tag that ends with 9 (CHARSXP), a length, the bytes."""
    at = vector.find(b"\x00\x00\x00\x10") + 8  # STRSXP and its length
    while at + 8 <= len(vector) and vector[at + 3] == 9:
        length = int.from_bytes(vector[at + 4 : at + 8], "big", signed=True)
        yield vector[at + 8 : at + 8 + max(length, 0)].decode("utf-8", "replace")
        at += 8 + max(length, 0)


def skill_sentence(rng: random.Random) -> tuple[str, str]:
    """A sentence that lists words and lists them backwards, and the words that come last."""
    chosen = rng.sample(words.NOUNS, SKILL_WORDS)
    given, backwards = ", ".join(chosen), ", ".join(reversed(chosen))
    return _FORM.format(given=given, reversed=backwards), backwards


def skill_documents(texts: list[str], count: int, seed: int) -> Iterator[str]:
    """Short documents: paragraphs of the texts, and after each two sentences with the skill."""
    rng = random.Random(seed)
    for _ in range(count):
        text = rng.choice(texts)
        parts = []
        for _ in range(3):
            at = rng.randrange(max(1, len(text) - 400))
            parts.append(text[at : at + 400].strip() + "\n")
            parts += [skill_sentence(rng)[0] for _ in range(2)]
        yield "".join(parts)


def write(out: Path, folders: list[Path], held_out: Path, skills: int, seed: int) -> None:
    """long.jsonl, skill.jsonl and held-out.txt in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    texts = list(long_documents(folders))
    _write_lines(out / "long.jsonl", texts)
    _write_lines(out / "skill.jsonl", skill_documents(texts, skills, seed))
    data = held_out.read_bytes()
    text = lzma.decompress(data) if held_out.suffix == ".xz" else data
    (out / "held-out.txt").write_bytes(text)


def _write_lines(path: Path, texts: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}) + "\n")
