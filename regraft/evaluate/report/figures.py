"""Figures: scores by length, needles by length and depth, fidelity by rank; readable in grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regraft import drawing
from regraft.evaluate.report.aggregate import RatiosByTask, losses_by_position
from regraft.evaluate.report.overlap import Point, covered_by
from regraft.evaluate.result import EvaluationRecord, FidelityRecord
from regraft.units import format_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(folder: Path, result: EvaluationRecord) -> list[str]:
    """Write curves.png, needle.png if there is a grid, losses.png if plain text was read, and
    fidelity.png if there are adapters.

    Models with an adapter are only in the last. Returns the names of the files."""
    names = []
    if result.cells:
        _curves(folder / "curves.png", result)
        names.append("curves.png")
    if "needle" in result.tasks and result.cells:
        _heat(folder / "needle.png", result)
        names.append("needle.png")
    if by_model := losses_by_position(result):
        _losses(folder / "losses.png", by_model)
        names.append("losses.png")
    if result.fidelity is not None and _available(result.fidelity):
        _fidelity(folder / "fidelity.png", result.fidelity)
        names.append("fidelity.png")
    return names


def _available(fidelity: FidelityRecord) -> RatiosByTask:
    """The ratios of the tasks in which at least one is not n/a."""
    return {
        task: by_length
        for task, by_length in fidelity.ratios.items()
        if any(ratio for by_name in by_length.values() for ratio in by_name.values())
    }


def line_styles(lines: Sequence[Sequence[Point]]) -> list[drawing.LineStyle]:
    """matplotlib's arguments for each line; one that later lines cover is solid and wider."""
    styles = []
    for style, count in zip(drawing.styles(), covered_by(lines), strict=False):
        style |= {"linewidth": 1.5 + 2.5 * count, "markersize": 4 + 3 * count}
        styles.append(style | ({"linestyle": "-"} if count else {}))
    return styles


def _fidelity(path: Path, fidelity: FidelityRecord) -> None:
    """Share of the donor's gain that an adapter contains, by its rank, a line for each length."""
    adapters, ratios = fidelity.adapters, _available(fidelity)
    plotted = list(ratios) if len(ratios) <= 3 or "all" not in ratios else ["all"]
    with drawing.figure(path, len(plotted), width=4.6, height=3.6) as drawn:
        every = drawn if isinstance(drawn, list) else [drawn]
        for axes, task in zip(every, plotted, strict=True):
            marks = sorted({adapter.rank for adapter in adapters.values()})
            by_length = {
                length: [(adapters[name].rank, r) for name, r in by_name.items() if r]
                for length, by_name in ratios[task].items()
            }
            lines = [[(rank, r.value) for rank, r in points] for points in by_length.values()]
            for style, (length, points) in zip(line_styles(lines), by_length.items(), strict=True):
                if not points:
                    continue
                ranks = [rank for rank, _ in points]
                low, high = [r.low for _, r in points], [r.high for _, r in points]
                label = f"{format_tokens(length)} tokens"
                axes.plot(ranks, [r.value for _, r in points], label=label, **style)
                axes.fill_between(ranks, low, high, color=style["color"], alpha=0.12, linewidth=0)
            axes.axhline(1, color="#555555", linewidth=0.8)
            axes.set_xscale("log", base=2)
            axes.set_xticks(marks, [f"{rank:g}" for rank in marks])
            axes.minorticks_off()
            axes.set(xlabel="rank", ylabel="share of the donor's gain", title=task)
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
            drawing.legend(axes)


def _curves(path: Path, result: EvaluationRecord) -> None:
    first = next(iter(result.models))
    tasks = list(result.cells[first])
    plotted: list[str | None] = (
        list(tasks) if len(tasks) <= 3 or not result.overall else [None]
    )  # the mean
    with drawing.figure(path, len(plotted), width=4.6, height=3.6) as drawn:
        every = drawn if isinstance(drawn, list) else [drawn]
        for axes, task in zip(every, plotted, strict=True):
            marks: list[int] = []
            by_model: dict[str, dict[int, tuple[float, float, float]]] = {}
            for model in _without_adapter(result):
                if task is None:
                    points = {n: (s, s, s) for n, s in result.overall.get(model, {}).items()}
                else:
                    points = {
                        n: (cell.score, *cell.interval)
                        for n, cell in result.cells.get(model, {}).get(task, {}).items()
                    }
                if points:
                    by_model[model] = points
            lines = [[(n, p[0]) for n, p in each.items()] for each in by_model.values()]
            for style, (model, points) in zip(line_styles(lines), by_model.items(), strict=True):
                marks = sorted(points)
                middle, low, high = zip(*(points[n] for n in marks), strict=True)
                axes.plot(marks, middle, label=_label(model), **style)
                axes.fill_between(marks, low, high, color=style["color"], alpha=0.12, linewidth=0)
            axes.set_xscale("log", base=2)
            axes.set_xticks(marks, [format_tokens(n) for n in marks])
            axes.minorticks_off()
            axes.set(
                ylim=(-0.03, 1.05), xlabel="tokens", ylabel="share answered",
                title=task or "mean over tasks",
            )  # fmt: skip
        _legend_below(every)


def _losses(path: Path, by_model: Mapping[str, Mapping[int, float]]) -> None:
    """NLL of plain text by position, a line for each model."""
    lines = [list(by_position.items()) for by_position in by_model.values()]
    ends = [end for end, _ in lines[0]]
    with drawing.figure(path, width=4.6, height=3.6) as axes:
        for style, name, points in zip(line_styles(lines), by_model, lines, strict=True):
            axes.plot(*zip(*points, strict=True), label=_label(name), **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ends, [format_tokens(end) for end in ends])
        axes.minorticks_off()
        axes.set(xlabel="up to position", ylabel="NLL of plain text, nats a token")
        _legend_below([axes])


def _legend_below(every: Sequence[Axes]) -> None:
    """The legend of the first axes, below all of them."""
    handles, labels = every[0].get_legend_handles_labels()
    every[0].figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 3 * len(every)),
        fontsize=8,
    )  # fmt: skip


def _heat(path: Path, result: EvaluationRecord) -> None:
    models = [m for m in _without_adapter(result) if "needle" in result.cells.get(m, {})]
    with drawing.figure(path, len(models), width=2.6, height=2.9) as drawn:
        every = drawn if isinstance(drawn, list) else [drawn]
        for number, (axes, model) in enumerate(zip(every, models, strict=True)):
            cells = result.cells[model]["needle"]
            lengths = list(cells)
            depths = list(cells[lengths[0]].depths or {})
            values = [
                [(cells[n].depths or {}).get(d, float("nan")) for n in lengths] for d in depths
            ]
            # cividis goes from dark to light in grey, too; the numbers do not depend on colour
            axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
            axes.grid(visible=False)
            for edge in range(1, len(lengths)):
                axes.axvline(edge - 0.5, color="white", linewidth=0.8)
            for edge in range(1, len(depths)):
                axes.axhline(edge - 0.5, color="white", linewidth=0.8)
            for row, line in enumerate(values):
                for column, value in enumerate(line):
                    axes.text(
                        column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7,
                        color="black" if value > 0.5 else "white",
                    )  # fmt: skip
            axes.set_xticks(range(len(lengths)), [format_tokens(n) for n in lengths])
            axes.set_yticks(range(len(depths)), [f"{100 * float(d):.0f}%" for d in depths])
            axes.set(title=model, xlabel="tokens")
            if number == 0:
                axes.set_ylabel("depth of the needle")
                axes.figure.suptitle("needles found, percent", fontsize=9)


def _label(name: str) -> str:
    """matplotlib omits labels that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _without_adapter(result: EvaluationRecord) -> list[str]:
    """The names of the models without an adapter."""
    adapted = result.fidelity.adapters if result.fidelity else {}
    return [name for name in result.models if name not in adapted]
