"""Commands and code blocks that the README, the documentation, examples and help texts print.

A block that a test cannot run follows a comment `<!-- not run: REASON -->`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from generate.commands import every_command

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PROGRAMS = ("regraft", "torchrun", "python", "make", "pip", "vllm", "llama-server")

_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<language>[a-z]*)\n(?P<body>.*?)^```",
    re.S | re.M,
)


@dataclass(frozen=True)
class Command:
    """A printed command. page: where it is printed; reason: why no test runs it, if none does."""

    page: Path
    text: str
    reason: str | None = None


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    language: str
    body: str
    reason: str | None


def blocks(language: str | None = None) -> list[Block]:
    """The fenced blocks of all pages, of a language or of every one."""
    result = []
    for page in PAGES:
        for match in _FENCE.finditer(page.read_text(encoding="utf-8")):
            if language in (None, match["language"]):
                result.append(Block(page, match["language"], match["body"], match["reason"]))
    return result


def commands() -> list[Command]:
    """All commands, each once."""
    return list(dict.fromkeys([*_pages(), *_examples(), *_helps()]))


def _pages() -> Iterator[Command]:
    for block in blocks():
        if block.language in ("bash", ""):
            for line in _joined(block.body).splitlines():
                yield from _found(block.page, line, block.reason)
    for page in PAGES:
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        for block in re.findall(r"(?:^ {4}\S.*\n)+", text, re.M):
            for line in _joined(block).splitlines():
                yield from _found(page, line)
        for code in re.findall(r"`([^`]+)`", text):
            name = code.removeprefix("regraft ")  # of a command in a sentence
            if len(code.split()) > 2 and name not in every_command():
                yield from _found(page, " ".join(code.split()))


def _examples() -> Iterator[Command]:
    for page in EXAMPLES:
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("#"):
                yield from _found(page, line[1:])


def _helps() -> Iterator[Command]:
    for name, command in every_command().items():
        page = ROOT / "regraft" / "commands" / f"{name.split()[0].replace('-', '_')}.py"
        for line in re.findall(
            r"^[^:\n]*: ((?:regraft|torchrun) .*)", _joined(command.help or ""), re.M
        ):
            yield from _found(page, line)


def _joined(text: str) -> str:
    """Lines that end in a backslash, with the next one."""
    return re.sub(r"\\\n\s*", "", text)


def _found(page: Path, line: str, reason: str | None = None) -> Iterator[Command]:
    """The command on a line, without prompt and comment."""
    line = re.split(r"\s{2,}prints |\s#", line.strip().removeprefix("$ "))[0].strip()
    if line.split(" ")[0] in PROGRAMS and len(line.split()) > 1:
        yield Command(page, line, reason)
