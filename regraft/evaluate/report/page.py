"""One self-contained HTML page: the matrix, curves and heat maps drawn as SVG, sample prompts.

No network and no library: styles, figures and a few lines of script are in the file. What a mark
shows on the screen is also in its title and in a table, so nothing depends on colour or a mouse.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, TypeVar

from regraft.evaluate.report import tables as report
from regraft.evaluate.report.overlap import covered_by
from regraft.units import format_tokens
from regraft.write import write_text

Number = TypeVar("Number", int, float)
_LONGEST = 20_000  # characters of a sample; result.json has all of them
# C0 and C1 but for tab and line feed, marks that turn the direction of text, halves of surrogates
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_WIDTH, _HEIGHT, _LEFT, _TOP = 420, 240, 44, 14
_COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#777777")
_DASHES = ("", "7 4", "7 3 2 3", "2 3", "10 3", "1 2", "5 2 1 2 1 2", "")


def write_page(path: Path, result: dict[str, Any]) -> None:
    """The page of a result."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("regraft.evaluate.report", ""), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["shown"] = shown_text
    text = environment.get_template("page.html.j2").render(
        title=report.title(result), lead=report.lead(result), notes=report.notes(result),
        tables=report.tables(result), curves=curves(result), kept=fidelity(result), key=key,
        maps=heat_maps(result), samples=result["samples"], size=(_WIDTH, _HEIGHT, _LEFT, _TOP),
        versions=result["versions"],
    )  # fmt: skip
    write_text(path, text)


def shown_text(text: str) -> str:
    """A text as the page shows it: its beginning and end, control characters made visible."""
    if len(text) > _LONGEST:
        left_out = f"\n[... {len(text) - _LONGEST:,} characters left out ...]\n"
        text = text[: _LONGEST // 2] + left_out + text[-_LONGEST // 2 :]
    return _CONTROL.sub(lambda match: _visible(match[0]), text)


def _visible(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"


def curves(result: dict[str, Any]) -> list[dict[str, Any]]:
    """For every task its lines: points (x, y in pixels) with what to say of them. What has an
    adapter is in `fidelity`."""
    drawn = []
    adapted = result.get("fidelity", {"adapters": {}})["adapters"]
    for task in result["tasks"]:
        by_model = {
            model: tasks[task]
            for model, tasks in result["cells"].items()
            if task in tasks and model not in adapted
        }
        lengths = sorted({int(length) for cells in by_model.values() for length in cells})
        if not lengths:
            continue
        place = _scale(lengths)
        lines: list[dict[str, Any]] = []
        for model, cells in by_model.items():
            points = [
                {
                    "x": place[int(length)],
                    "y": round(_TOP + (1 - cell["score"]) * _HEIGHT, 1),
                    "text": f"{model}, {format_tokens(int(length))} tokens: {cell['score']:.1%} "
                    f"of {cell['items']}, interval {cell['interval'][0]:.0%} to "
                    f"{cell['interval'][1]:.0%}"
                    + (f", twins {cell['twin']:.1%}" if "twin" in cell else ""),
                }
                for length, cell in cells.items()
            ]
            lines.append(_line(model, len(lines), points))
        _widen(lines)
        ticks = [(place[length], format_tokens(length)) for length in lengths]
        drawn.append(
            {"task": task, "lines": lines, "ticks": ticks, "rules": _rules(0, 1), "unit": "tokens"}
        )
    return drawn


def fidelity(result: dict[str, Any]) -> list[dict[str, Any]]:
    """For every task a line for each length: the share of the donor's gain kept, by rank."""
    if "fidelity" not in result:
        return []
    adapters, drawn = result["fidelity"]["adapters"], []
    place = _scale(sorted({facts["rank"] for facts in adapters.values()}))
    for task, by_length in result["fidelity"]["ratios"].items():
        values = [r["value"] for found in by_length.values() for r in found.values() if r]
        low, high = min([0.0, *values]), max([1.0, *values])
        lines: list[dict[str, Any]] = []
        for number, (length, found) in enumerate(by_length.items()):
            points = [
                {
                    "x": place[adapters[name]["rank"]],
                    "y": round(_TOP + (high - r["value"]) / (high - low) * _HEIGHT, 1),
                    "text": f"{name}, {format_tokens(int(length))} tokens: keeps {r['value']:.0%} "
                    f"of the donor's gain, interval {r['low']:.0%} to {r['high']:.0%}",
                }
                for name, r in found.items()
                if r
            ]
            if points:
                name = f"{format_tokens(int(length))} tokens"
                lines.append(_line(name, number, points, "kept"))
        ticks = [(x, f"{rank:g}") for rank, x in place.items()]
        _widen(lines)
        if lines:
            drawn.append(
                {"task": task, "lines": lines, "ticks": ticks, "rules": _rules(low, high),
                 "unit": "rank"}
            )  # fmt: skip
    return drawn


def key(plots: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every line that stands in any of the plots, once."""
    found = {line["number"]: line for plot in plots for line in plot["lines"]}
    return [found[number] for number in sorted(found)]


def _line(name: str, number: int, points: list[dict[str, Any]], kind: str = "") -> dict[str, Any]:
    return {
        "name": name, "number": number, "key": f"{kind}{number}", "points": points,
        "colour": _COLOURS[number % len(_COLOURS)], "dash": _DASHES[number % len(_DASHES)],
    }  # fmt: skip


def _widen(lines: list[dict[str, Any]]) -> None:
    """Widths and radii with which lines that lie on each other are all seen."""
    paths = [[(point["x"], point["y"]) for point in line["points"]] for line in lines]
    for line, covers in zip(lines, covered_by(paths), strict=True):
        line["width"], line["radius"] = 2.2 + 3.2 * covers, 5 + 2.5 * covers


def _rules(low: float, high: float) -> list[tuple[float, str]]:
    """(y, label) of the horizontal lines: five from `low` to `high`."""
    return [
        (_TOP + part / 4 * _HEIGHT, f"{high - part / 4 * (high - low):.0%}") for part in range(5)
    ]


def heat_maps(result: dict[str, Any]) -> list[dict[str, Any]]:
    """For every model its needle grid: rows of depths, with a grey that is the score."""
    maps = []
    for model, tasks in result["cells"].items():
        cells = tasks.get("needle")
        if not cells:
            continue
        depths = list(dict.fromkeys(depth for cell in cells.values() for depth in cell["depths"]))
        rows = [
            {"depth": f"{float(depth):.0%}",
             "cells": [_shade(model, length, depth, cell) for length, cell in cells.items()]}
            for depth in sorted(depths, key=float)
        ]  # fmt: skip
        heads = [format_tokens(int(length)) for length in cells]
        maps.append({"model": model, "lengths": heads, "rows": rows})
    return maps


def _shade(model: str, length: str, depth: str, cell: dict[str, Any]) -> dict[str, Any]:
    score = cell["depths"].get(depth)
    if score is None:
        return {"shown": "", "light": 100, "dark": False, "text": "not measured"}
    tokens = format_tokens(int(length))
    return {
        "shown": f"{100 * score:.0f}",
        "light": round(25 + 70 * score),
        "dark": score < 0.45,
        "text": f"{model}, {tokens} tokens, depth {float(depth):.0%}: {score:.0%}",
    }


def _scale(values: list[Number]) -> dict[Number, float]:
    """x of every length or rank, on a scale of powers of two."""
    logs = [math.log2(max(value, 0.5)) for value in values]
    span = (logs[-1] - logs[0]) or 1
    return {
        n: round(_LEFT + 12 + (log - logs[0]) / span * (_WIDTH - _LEFT - 30), 1)
        for n, log in zip(values, logs, strict=True)
    }
