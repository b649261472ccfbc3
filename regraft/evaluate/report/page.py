"""index.html: tables, figures as SVG and sample prompts in one self-contained page.

It needs no network and no library: styles, figures and a few lines of script are in the file. Hover
text is also in the mark's title and in a table, so nothing depends on colour or a mouse.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.evaluate.report import plots
from regraft.evaluate.report.tables import tables
from regraft.evaluate.report.text import introduction, notes, title
from regraft.evaluate.result import EvaluationRecord
from regraft.write import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

_LONGEST = 20_000  # characters of a sample; result.json has all of them
# C0 and C1 except tab and line feed, direction marks, lone surrogates
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def write_page(path: Path, result: EvaluationRecord) -> None:
    """Write the page of a result to `path`."""
    text = render_page(
        "page.html.j2",
        title=title(result), introduction=introduction(result), notes=notes(result),
        tables=tables(result), curves=plots.curves(result), losses=plots.losses(result),
        fidelity=plots.fidelity(result),
        distinct_lines=plots.distinct_lines, maps=plots.heat_maps(result), samples=result.samples,
        versions=result.versions,
    )  # fmt: skip
    write_text(path, text)


def render_page(template: str, *, package: str = "regraft.evaluate.report", **values: Any) -> str:
    """Fill an HTML template of `package`, which may import parts.html.j2; every value is escaped,
    an undefined template variable raises."""
    size = (plots.WIDTH, plots.HEIGHT, plots.LEFT, plots.TOP)
    return _environment(package).get_template(template).render(size=size, **values)


@cache
def _environment(package: str) -> Environment:
    """The templates of `package`, compiled once in a process, which takes longer than filling
    them."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    own = "regraft.evaluate.report"
    loader = ChoiceLoader([PackageLoader(package, ""), PackageLoader(own, "")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["visible"] = visible_text
    return environment


def visible_text(text: str) -> str:
    """`text` with control characters made visible, and only the ends of a very long one."""
    if len(text) > _LONGEST:
        left_out = f"\n[... {len(text) - _LONGEST:,} characters left out ...]\n"
        text = text[: _LONGEST // 2] + left_out + text[-_LONGEST // 2 :]
    return _CONTROL.sub(lambda match: _visible(match[0]), text)


def _visible(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"
