"""The page's figures as coordinates in pixels, for its template to draw as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from regraft.evaluate.report.aggregate import losses_by_position
from regraft.evaluate.report.overlap import covered_by
from regraft.evaluate.result import Cell, EvaluationRecord
from regraft.units import format_tokens

Number = TypeVar("Number", int, float)
WIDTH, HEIGHT, LEFT, TOP = 420, 240, 44, 14  # pixels; HEIGHT without labels, LEFT: of the axis
_COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#777777")
_DASHES = ("", "7 4", "7 3 2 3", "2 3", "10 3", "1 2", "5 2 1 2 1 2", "")


@dataclass(frozen=True)
class Point:
    """A mark at (x, y) and its description."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """A line of a plot. number: its position in the legend, the same in every plot; key: its name
    in the page's script."""

    name: str
    number: int
    key: str
    points: list[Point]
    colour: str
    dash: str
    width: float = 2.2
    radius: float = 5


@dataclass(frozen=True)
class Plot:
    """A plot of one task. ticks: (x, label); grid: (y, label) of horizontal lines; unit: of x."""

    task: str
    lines: list[Line]
    ticks: list[tuple[float, str]]
    grid: list[tuple[float, str]]
    unit: str


@dataclass(frozen=True)
class MapCell:
    """A cell of a heat map. light: percent; dark: whether its text must be white."""

    percent: str
    light: int
    dark: bool
    text: str


@dataclass(frozen=True)
class MapRow:
    """The cells of one depth."""

    depth: str
    cells: list[MapCell]


@dataclass(frozen=True)
class HeatMap:
    """A model's needle scores by depth and length."""

    model: str
    lengths: list[str]
    rows: list[MapRow]


def curves(result: EvaluationRecord) -> list[Plot]:
    """For every task the scores by length, a line for each model without an adapter."""
    plots = []
    numbers = {model: number for number, model in enumerate(result.models)}
    adapted = result.fidelity.adapters if result.fidelity else {}
    for task in result.tasks:
        by_model = {
            model: tasks[task]
            for model, tasks in result.cells.items()
            if task in tasks and model not in adapted
        }
        lengths = sorted({length for cells in by_model.values() for length in cells})
        if not lengths:
            continue
        x = _positions(lengths)
        lines = []
        for model, cells in by_model.items():
            points = [
                Point(
                    x[length],
                    round(TOP + (1 - cell.score) * HEIGHT, 1),
                    _describe(model, length, cell),
                )
                for length, cell in cells.items()
            ]
            lines.append(_line(model, numbers[model], points))
        ticks = [(x[length], format_tokens(length)) for length in lengths]
        plots.append(Plot(task, _widen(lines), ticks, _grid(0, 1), "tokens"))
    return plots


def losses(result: EvaluationRecord) -> list[Plot]:
    """The NLL of plain text by position, a line for each model without an adapter; empty where it
    was not measured."""
    by_model = losses_by_position(result)
    if not by_model:
        return []
    x = _positions(list(next(iter(by_model.values()))))  # all models read the same texts
    values = [loss for by_position in by_model.values() for loss in by_position.values()]
    low, high = min(values), max(values)
    high += low == high
    lines = []
    for number, name in enumerate(result.models):
        points = [
            Point(
                x[end], round(TOP + (high - loss) / (high - low) * HEIGHT, 1),
                f"{name}, up to position {end}: {loss:.3f} nats",
            )
            for end, loss in by_model.get(name, {}).items()
        ]  # fmt: skip
        if points:
            lines.append(_line(name, number, points))
    ticks = [(position, format_tokens(end)) for end, position in x.items()]
    return [Plot("nats a token", _widen(lines), ticks, _grid(low, high, ".2f"), "up to position")]


def _describe(model: str, length: int, cell: Cell) -> str:
    twins = "" if cell.twin is None else f", twins {cell.twin:.1%}"
    return (
        f"{model}, {format_tokens(length)} tokens: {cell.score:.1%} of {cell.items}, interval "
        f"{cell.interval[0]:.0%} to {cell.interval[1]:.0%}{twins}"
    )


def fidelity(result: EvaluationRecord) -> list[Plot]:
    """For every task the share of the donor's gain by rank, a line for each length."""
    if result.fidelity is None:
        return []
    adapters, plots = result.fidelity.adapters, []
    x = _positions(sorted({adapter.rank for adapter in adapters.values()}))
    for task, by_length in result.fidelity.ratios.items():
        values = [r.value for ratios in by_length.values() for r in ratios.values() if r]
        low, high = min([0.0, *values]), max([1.0, *values])
        lines = []
        for number, (length, ratios) in enumerate(by_length.items()):
            points = [
                Point(
                    x[adapters[name].rank],
                    round(TOP + (high - r.value) / (high - low) * HEIGHT, 1),
                    f"{name}, {format_tokens(length)} tokens: {r.value:.0%} of the donor's gain, "
                    f"interval {r.low:.0%} to {r.high:.0%}",
                )
                for name, r in ratios.items()
                if r
            ]
            if points:
                lines.append(_line(f"{format_tokens(length)} tokens", number, points, "fidelity"))
        if lines:
            ticks = [(position, f"{rank:g}") for rank, position in x.items()]
            plots.append(Plot(task, _widen(lines), ticks, _grid(low, high), "rank"))
    return plots


def heat_maps(result: EvaluationRecord) -> list[HeatMap]:
    """For every model its needle scores by depth and length, in shades of grey."""
    maps = []
    for model, tasks in result.cells.items():
        cells = tasks.get("needle")
        if not cells:
            continue
        depths = {depth for cell in cells.values() for depth in cell.depths or {}}
        rows = [
            MapRow(
                f"{float(depth):.0%}",
                [_map_cell(model, length, depth, cell) for length, cell in cells.items()],
            )
            for depth in sorted(depths, key=float)
        ]
        maps.append(HeatMap(model, [format_tokens(length) for length in cells], rows))
    return maps


def _map_cell(model: str, length: int, depth: str, cell: Cell) -> MapCell:
    score = (cell.depths or {}).get(depth)
    if score is None:
        return MapCell("", 100, False, "not measured")
    text = f"{model}, {format_tokens(length)} tokens, depth {float(depth):.0%}: {score:.0%}"
    return MapCell(f"{100 * score:.0f}", round(25 + 70 * score), score < 0.45, text)


def distinct_lines(plots: Sequence[Plot]) -> list[Line]:
    """Every line that is in any of the plots, once, for the legend."""
    lines = {line.number: line for plot in plots for line in plot.lines}
    return [lines[number] for number in sorted(lines)]


def _line(name: str, number: int, points: list[Point], kind: str = "") -> Line:
    colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
    return Line(name, number, f"{kind}{number}", points, colour, dash)


def _widen(lines: list[Line]) -> list[Line]:
    """The lines, with each one wider than those that cover it."""
    covers = covered_by([[(point.x, point.y) for point in line.points] for line in lines])
    return [
        replace(line, width=2.2 + 3.2 * count, radius=5 + 2.5 * count)
        for line, count in zip(lines, covers, strict=True)
    ]


def _grid(low: float, high: float, form: str = ".0%") -> list[tuple[float, str]]:
    """(y, label) of five horizontal lines from `low` to `high`."""
    values = [high - part / 4 * (high - low) for part in range(5)]
    return [(TOP + part / 4 * HEIGHT, format(value, form)) for part, value in enumerate(values)]


def _positions(values: Sequence[Number]) -> dict[Number, float]:
    """x of every length or rank, in ascending order, on a logarithmic scale."""
    logs = [math.log2(max(value, 0.5)) for value in values]
    span = (logs[-1] - logs[0]) or 1
    return {
        value: round(LEFT + 12 + (log - logs[0]) / span * (WIDTH - LEFT - 30), 1)
        for value, log in zip(values, logs, strict=True)
    }
