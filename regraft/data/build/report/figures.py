"""Histograms and bars of the page, as coordinates in pixels for its template to draw as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from regraft.data.build.record import DatasetRecord
from regraft.data.build.statistics import Histogram
from regraft.units import counted

WIDTH, HEIGHT, LEFT, TOP = 420, 150, 52, 10  # of the area that is drawn on; LEFT and TOP of it
_CLASSES = 30
_COLOURS = ("#0072B2", "#E69F00")


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram. text: shown on hovering, and read aloud."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    text: str


@dataclass(frozen=True)
class Figure:
    """A histogram. ticks: (x, label) below it; grid: (y, label) of its lines; legend: (colour,
    name) of each series."""

    title: str
    bars: list[Bar]
    ticks: list[tuple[float, str]]
    grid: list[tuple[float, str]]
    legend: list[tuple[str, str]]
    note: str


def length_figures(record: DatasetRecord) -> list[Figure]:
    """For every source the lengths of documents before and after the build, by characters."""
    figures = []
    for name, source in record.sources.items():
        note = (
            f"{counted(source.read.documents, 'document')} before, {source.out.documents:,} "
            f"after; mean {_number(source.characters_before.mean)} and "
            f"{_number(source.characters.mean)} characters"
        )
        series = {"before": source.characters_before, "after": source.characters}
        figures.append(histogram(f"{name}: characters of a document", series, note, weighted=True))
    return figures


def score_figures(record: DatasetRecord) -> list[Figure]:
    """The distribution of every score of every step."""
    figures = []
    for step in record.steps:
        for name, scores in step.scores.items():
            least, mean, greatest = map(_number, (scores.least, scores.mean, scores.greatest))
            note = f"{scores.number:,} values, from {least} to {greatest}, mean {mean}"
            figures.append(histogram(f"{step.step}: {name}", {name: scores}, note))
    return figures


def histogram(
    title: str, series: Mapping[str, Histogram], note: str, *, weighted: bool = False
) -> Figure:
    """One or two distributions over the same classes.

    weighted: a bar is the share of the sum of values, such as of the text, not of their number. The
    axis is logarithmic where all values are positive and, unless weighted, the greatest is fifty
    times the least."""
    filled = {name: h for name, h in series.items() if h.number}
    least = min((h.least for h in filled.values() if h.least is not None), default=0.0)
    greatest = max((h.greatest for h in filled.values() if h.greatest is not None), default=1.0)
    logarithmic = least > 0 and (weighted or greatest > 50 * least)
    scale: Callable[[float], float] = math.log if logarithmic else float
    low, high = scale(least), scale(greatest)
    span = (high - low) or 1.0
    shares = {
        name: _shares(h, lambda v: (scale(max(v, least)) - low) / span, weighted)
        for name, h in filled.items()
    }
    top = max((share for values in shares.values() for share in values), default=1.0) or 1.0
    slot = WIDTH / _CLASSES
    bars = []
    for number, (name, values) in enumerate(shares.items()):
        width = slot * 0.9 / len(shares)
        for i, share in enumerate(values):
            if share == 0:
                continue
            start, end = (low + span * (i + j) / _CLASSES for j in (0, 1))
            if logarithmic:
                start, end = math.exp(start), math.exp(end)
            text = f"{name}: {share:.1%} from {_number(start)} to {_number(end)}"
            height = share / top * HEIGHT
            x = LEFT + i * slot + number * width
            y = TOP + HEIGHT - height
            bars.append(Bar(round(x, 1), round(y, 1), round(width, 1), round(height, 1),
                            _COLOURS[number % 2], text))  # fmt: skip
    ticks = []
    for part in range(5):
        value = low + span * part / 4
        ticks.append((LEFT + WIDTH * part / 4, _number(math.exp(value) if logarithmic else value)))
    grid = [(TOP + HEIGHT * (1 - part / 2), f"{top * part / 2:.0%}") for part in range(3)]
    legend = [(_COLOURS[i % 2], name) for i, name in enumerate(shares)] if len(series) > 1 else []
    return Figure(title, bars, ticks, grid, legend, note)


def _shares(values: Histogram, place: Callable[[float], float], weighted: bool) -> list[float]:
    """The share of each class of the figure; place: 0 to 1 on its axis."""
    result = [0.0] * _CLASSES
    for key, count in values.counts.items():
        value = float(key)
        index = min(_CLASSES - 1, max(0, int(place(value) * _CLASSES)))
        result[index] += count * (abs(value) if weighted else 1)
    whole = sum(result) or 1.0
    return [one / whole for one in result]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
