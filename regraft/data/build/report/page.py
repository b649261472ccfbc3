"""index.html of a built folder: tables, and figures as SVG, in one file without scripts."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path

from regraft.data.build.record import DatasetRecord, total
from regraft.data.build.report import figures
from regraft.data.build.report.card import mix_rows, share_rows, source_rows, step_rows
from regraft.data.build.report.domain_map import FIGURE
from regraft.units import counted
from regraft.write import write_text

_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#999999")


@dataclass(frozen=True)
class _Size:
    """Of a figure, in pixels. below: the y of its labels."""

    width: int = figures.LEFT + figures.WIDTH + 4
    height: int = figures.TOP + figures.HEIGHT + 22
    left: int = figures.LEFT
    below: int = figures.TOP + figures.HEIGHT + 16


def write_page(path: Path, record: DatasetRecord, name: str, caption: str | None) -> None:
    """Write the page of a dataset called `name`. caption: of its map; None: it has none."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("regraft.data.build.report", ""), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["is_number"] = lambda cell: re.fullmatch(r"[\d,.%() ]+", cell) is not None
    out = total(source.out for source in record.sources.values())
    text = environment.get_template("page.html.j2").render(
        title=name,
        summary=f"{counted(out.documents, 'document')} with {counted(out.tokens, 'token')} "
        f"(tokenizer {record.tokenizer.name}) in {counted(len(record.shards), 'file')}.",
        size=_Size(), sources=source_rows(record), shares=_shares(record),
        domains=share_rows(record), map=caption, figure=_figure(path.with_name(FIGURE)),
        left_out=_left_out(record), warnings=record.warnings,
        lengths=figures.length_figures(record), steps=step_rows(record),
        scores=figures.score_figures(record), mixes=mix_rows(record) if record.mixes else [],
        recipe=record.recipe, versions=record.versions,
    )  # fmt: skip
    write_text(path, text)


def _figure(path: Path) -> str:
    """A PNG file in base64; '' where there is none."""
    return base64.b64encode(path.read_bytes()).decode() if path.exists() else ""


def _shares(record: DatasetRecord) -> list[tuple[str, list[tuple[str, float, str]]]]:
    """(title, [(source, percent, colour)]) of the text read, and of the tokens written."""
    result = []
    for title, values in (
        ("Characters read", {n: s.read.characters for n, s in record.sources.items()}),
        ("Tokens written", {n: s.out.tokens for n, s in record.sources.items()}),
    ):
        whole = sum(values.values()) or 1
        parts = [
            (name, round(100 * value / whole, 1), _COLOURS[i % len(_COLOURS)])
            for i, (name, value) in enumerate(values.items())
        ]
        result.append((title, parts))
    return result


def _left_out(record: DatasetRecord) -> list[str]:
    return [
        f"Of {name}, {phrase}."
        for name, source in record.sources.items()
        for phrase in source.report.left_out()
    ]
