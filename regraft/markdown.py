"""Model cards and reports in Markdown: Jinja2 templates in which every value is plain text.

A model's name can contain anything: a table's border, HTML, a link. `render` escapes every value
that a template prints, except those of type `Markdown`, which `table` and `code` return.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template

# Control characters, marks that turn the direction of text, halves of surrogates.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SPECIAL = re.compile(
    r"[\\`*|]"  # escapes, code, emphasis, a table's border
    r"|\](?=[(\[:])"  # the middle of a link or an image
    r"|(?<!\w)_|_(?!\w)|~(?=~)"  # emphasis; an underscore inside a name is none
    r"|^>|^[#+=-]+(?=\s|$)"  # quote, heading, list, rule
)
_NUMBER = re.compile(r"[-+<>]?\d[\d.,]*(e[-+]?\d+)?([kMG]|%|x)?(?![\w/-])")
_NO_VALUE = ("", "-", "n/a", "none", "not supported")  # in a column of numbers
_PLAIN_YAML = re.compile(r"[A-Za-z][\w-]*/[A-Za-z][\w.-]*")  # org/name


class Markdown(str):
    """Text that is Markdown already and is not escaped."""


def escape(text: object) -> Markdown:
    """Plain text as one line that Markdown displays unchanged. `Markdown` is returned as it is."""
    if isinstance(text, Markdown):
        return text
    line = _CONTROL.sub("\ufffd", " ".join(str(text).split()))
    line = _SPECIAL.sub(lambda match: "\\" + match[0], line)
    return Markdown(line.replace("&", "&amp;").replace("<", "&lt;"))


def code(text: str) -> Markdown:
    """One line for an indented code block, in which only line breaks have a meaning."""
    return Markdown(_CONTROL.sub("\ufffd", text))


def fenced(text: str, language: str = "") -> Markdown:
    """A code block with a fence of more backticks than the text has in a row."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def yaml_scalar(text: str) -> Markdown:
    """A value for the front matter: unchanged if it is org/name, else a quoted string."""
    return Markdown(text if _PLAIN_YAML.fullmatch(text) else json.dumps(text))


def table(rows: Sequence[Sequence[object]]) -> Markdown:
    """A table, the first row its head: columns of numbers to the right, except the first one."""
    columns = list(zip(*rows[1:], strict=True))[1:] or [()] * (len(rows[0]) - 1)
    rule = [Markdown("---")]
    rule += [Markdown("--:" if _are_numbers(column) else "---") for column in columns]
    return Markdown("\n".join(map(_row, [rows[0], rule, *rows[1:]])))


def _are_numbers(column: Iterable[object]) -> bool:
    """Whether cells begin with a number, except for those without a value."""
    texts = [str(cell) for cell in column if str(cell) not in _NO_VALUE]
    return bool(texts) and all(map(_NUMBER.match, texts))


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(escape, cells))} |"


def render(template: str, **values: Any) -> str:
    """Fill a Jinja2 template; a name it lacks is an error, not a blank.

    Every string that it prints is escaped; filters: code, fenced, yaml, row (the cells of a row),
    rows (the rows of a table, one or more).
    """
    return _compiled(template).render(**values)


@cache
def _compiled(template: str) -> Template:
    """Compiled once in a process, which takes longer than filling it."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        finalize=lambda value: escape(value) if isinstance(value, str) else value,
    )  # fmt: skip
    environment.filters |= {
        "code": code, "fenced": fenced, "yaml": yaml_scalar,
        "row": lambda cells: Markdown(_row(cells)),
        "rows": lambda rows: Markdown("\n".join(map(_row, rows))),
    }  # fmt: skip
    return environment.from_string(template)


def hub_id(name: str, revision: str | None) -> str | None:
    """org/name of a model from the Hub, for the front matter; None for a local folder."""
    return None if revision is None else name.partition("@")[0]


def last_name(name: str) -> str:
    """The last part of a path or Hub id."""
    return Path(name).name or name
