"""Draw the floors of the package: docs/floors.svg, from the import contract in pyproject.toml.

    python docs/draw_floors.py

A row is a layer of the contract, the highest first; a box is a folder (blue) or a file. Imports go
from a row to rows below it, never up and never sideways.
"""

from __future__ import annotations

import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "floors.svg"

WIDTH, MARGIN, LABEL, GAP = 880, 16, 44, 8
BOX_HEIGHT, ROW_GAP = 34, 10
FOLDER, FILE, EDGE, TEXT = "#dbe9f6", "#f1f1ec", "#5b6b7a", "#1d2730"
PER_ROW = 6


def layers() -> list[list[str]]:
    """The contract's layers, top first, as names below `regraft`."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = config["tool"]["importlinter"]["contracts"][0]
    return [[part.strip().removeprefix("regraft.") for part in layer.split("|")]
            for layer in contract["layers"]]  # fmt: skip


def svg() -> str:
    """The picture."""
    parts: list[str] = []
    y = MARGIN
    rows = layers()
    for number, names in enumerate(rows):
        count = -(-len(names) // PER_ROW)  # lines, as equal as can be
        size = -(-len(names) // count)
        lines = [names[i : i + size] for i in range(0, len(names), size)]
        floor = len(rows) - 1 - number
        middle = y + (len(lines) * (BOX_HEIGHT + GAP) - GAP) / 2 + 5
        parts.append(_text(MARGIN + 10, middle, str(floor), size=13, anchor="middle", faint=True))
        for line in lines:
            room = WIDTH - 2 * MARGIN - LABEL
            width = (room - GAP * (len(line) - 1)) / len(line)
            for i, name in enumerate(line):
                parts.append(_box(MARGIN + LABEL + i * (width + GAP), y, width, name))
            y += BOX_HEIGHT + GAP
        y += ROW_GAP - GAP
    bottom = y - ROW_GAP
    height = bottom + 2 * MARGIN + 14
    legend = _legend(bottom + MARGIN)
    arrow = (
        f'<path d="M {MARGIN + 30} {MARGIN} V {bottom - 6}" stroke="{EDGE}" fill="none"/>'
        f'<path d="M {MARGIN + 25} {bottom - 10} l 5 9 l 5 -9 z" fill="{EDGE}"/>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif">\n'
        "<title>The floors of regraft: imports point down only</title>\n"
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n'
        + arrow + "\n" + "\n".join(parts) + "\n" + legend + "\n</svg>\n"
    )  # fmt: skip


def _legend(y: float) -> str:
    """What colours and arrow mean, in a line whose top is at `y`."""
    x = MARGIN + LABEL
    parts = []
    for colour, label, width in ((FOLDER, "a folder", 100), (FILE, "a file", 100)):
        parts.append(
            f'<rect x="{x}" y="{y}" width="20" height="14" rx="3" fill="{colour}" stroke="{EDGE}"/>'
            + _text(x + 28, y + 12, label, size=13, anchor="start")
        )
        x += width
    note = "a module imports only from rows below its own"
    return "".join(parts) + _text(x, y + 12, note, size=13, anchor="start")


def _box(x: float, y: float, width: float, name: str) -> str:
    is_folder = (ROOT / "regraft" / name).is_dir()
    label = f"{name}/" if is_folder else f"{name}.py"
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BOX_HEIGHT}" rx="5" '
        f'fill="{FOLDER if is_folder else FILE}" stroke="{EDGE}"/>'
        + _text(x + width / 2, y + BOX_HEIGHT / 2 + 5, label, size=14, anchor="middle")
    )


def _text(x: float, y: float, text: str, *, size: int, anchor: str, faint: bool = False) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="{EDGE if faint else TEXT}">{escape(text)}</text>'
    )


if __name__ == "__main__":
    TARGET.write_text(svg(), encoding="utf-8")
    print(TARGET.relative_to(ROOT))
