"""Markdown of the generated pages."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from regraft.markdown import Markdown, fenced, table


class MissingDescription(ValueError):
    """Something on a generated page has no description in the code."""


def described(text: str | None, name: str) -> str:
    """The description, one line. Raises MissingDescription where there is none."""
    line = " ".join((text or "").split())
    if not line:
        raise MissingDescription(f"{name} has no description")
    return line


def cell(text: str) -> Markdown:
    """Text from the code in a table: its `code` stays code, nothing else is Markdown."""
    parts = re.split(r"(`[^`]+`)", text)
    return Markdown("".join(part if i % 2 else _plain(part) for i, part in enumerate(parts)))


def code(text: str) -> Markdown:
    """Code in a table or a line. Python-Markdown takes its `|` for no border of a table."""
    return Markdown(f"`{text}`")


def anchor(title: str) -> str:
    """The anchor of a heading, as Python-Markdown makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def docstring(target: Any, name: str) -> str:
    """The docstring of a module, class or function, without indentation."""
    text = target.__doc__
    if not text or not text.strip():
        raise MissingDescription(f"{name} has no docstring")
    return inspect.cleandoc(text)


def paragraphs(text: str, language: str = "text") -> str:
    """A docstring as Markdown; blocks with indented or aligned lines are kept as they are."""
    parts: list[tuple[bool, str]] = []
    for block in text.split("\n\n"):
        lines = block.split("\n")
        kept = any(re.match(r"\s|\S+(, \S+)*\s{2,}\S", line) for line in lines)
        if kept and parts and parts[-1][0]:
            parts[-1] = True, f"{parts[-1][1]}\n\n{block}"
        else:
            parts.append((kept, block))
    return "\n\n".join(
        fenced(textwrap.dedent(block), language) if kept else cell(block) for kept, block in parts
    )


def _plain(text: str) -> str:
    text = re.sub(r"([\\*|]|(?<!\w)_|_(?!\w)|\](?=[(\[:]))", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;")


def rows(head: Sequence[str], body: Sequence[Sequence[object]]) -> Markdown:
    """A table whose columns are all to the left."""
    return Markdown(table([head, *body]).replace("--:", "---"))
