"""curves.png of a training: loss and validation by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from regraft import drawing
from regraft.train.output.log import read_steps, read_validations
from regraft.train.record import StepRecord, ValidationRecord
from regraft.units import format_tokens

CURVES = "curves.png"


def draw_curves(folder: Path) -> None:
    """Draw the logs in `folder`: the loss, and of validations NLL by position and needles found."""
    steps, validations = read_steps(folder), read_validations(folder)
    if not steps:
        return
    with_needle = [result for result in validations if result.needle is not None]
    columns = 1 + bool(validations) + bool(with_needle)
    with drawing.figure(folder / CURVES, columns, width=4.6, height=3.4) as axes:
        panels = axes if columns > 1 else [axes]
        _draw_loss(panels[0], steps)
        if validations:
            _draw_far_positions(panels[1], validations)
        if with_needle:
            _draw_needles(panels[2], with_needle)


def _draw_loss(axes: Any, steps: list[StepRecord]) -> None:
    """One line for each attempt of each stage."""
    attempts = sorted({(line.stage, line.attempt) for line in steps})
    for style, attempt in zip(drawing.styles(), attempts, strict=False):
        lines = [line for line in steps if (line.stage, line.attempt) == attempt]
        theta = f"{lines[0].theta:.15g}"
        label = f"{format_tokens(lines[0].length)}, theta {theta}"
        axes.plot(
            [line.step for line in lines], [line.loss for line in lines],
            color=style["color"], linestyle=style["linestyle"], linewidth=1, label=label,
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="training loss, nats a token")
    drawing.legend(axes)


def _draw_far_positions(axes: Any, validations: list[ValidationRecord]) -> None:
    """One line for each bucket but the nearest."""
    names = [name for result in validations for name in result.nll if not name.startswith("0-")]
    names = list(dict.fromkeys(names))
    names.sort(key=lambda name: tuple(map(int, name.split("-"))))
    for style, name in zip(drawing.styles(), names, strict=False):
        low, high = map(int, name.split("-"))
        axes.plot(
            [result.step for result in validations],
            [result.nll.get(name, math.nan) for result in validations],
            label=f"{format_tokens(low)} to {format_tokens(high)}",
            **style,
        )
    axes.set(xlabel="step", ylabel="held-out NLL by position")
    axes.legend(fontsize=7, ncols=1 + len(names) // 6)


def _draw_needles(axes: Any, validations: list[ValidationRecord]) -> None:
    """One line for each length."""
    lengths = sorted({result.length for result in validations})
    for style, length in zip(drawing.styles(), lengths, strict=False):
        results = [result for result in validations if result.length == length]
        axes.plot(
            [result.step for result in results],
            [result.needle.accuracy for result in results if result.needle is not None],
            label=f"at {format_tokens(length)}",
            **style,
        )
    axes.set(xlabel="step", ylabel="needles found", ylim=(-0.03, 1.05))
    drawing.legend(axes)
