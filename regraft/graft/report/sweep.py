"""A sweep as table and figure: rank x scale x transfer x retention."""

from __future__ import annotations

from pathlib import Path

from regraft.drawing import figure, legend, styles
from regraft.evaluate.report.tables import Rows, format_ratio
from regraft.graft.choose import PointRecord, SweepRecord
from regraft.units import format_bytes, format_tokens


def sweep_table(sweep: SweepRecord) -> Rows:
    """A row for each point, the chosen one marked."""
    length = format_tokens(sweep.length)
    head = [
        "rank",
        "size",
        "error",
        "scale",
        f"answered at {length}",
        f"transfer at {length}",
        "retention",
        "",
    ]
    return [head] + [
        [
            point.rank or "given",
            format_bytes(point.bytes) if point.bytes is not None else "-",
            f"{point.error:.3f}" if point.error is not None else "-",
            f"{point.scale:g}",
            f"{point.score:.2f}",
            format_ratio(point.transfer),
            format_ratio(point.retention),
            "chosen" if number == sweep.chosen else "",
        ]
        for number, point in enumerate(sweep.points)
    ]


def draw_sweep(path: Path, sweep: SweepRecord) -> None:
    """Transfer by retention, a line over the scales for each rank, with the chosen point ringed.
    Where a ratio is n/a, the score stands for transfer, and 1 for retention."""
    ranks: dict[str | None, list[PointRecord]] = {}
    for point in sweep.points:
        ranks.setdefault(point.rank, []).append(point)
    with figure(path, width=5.6, height=4.0) as axes:
        for style, (rank, points) in zip(styles(), ranks.items(), strict=False):
            x, y = zip(*(_position(point) for point in points), strict=True)
            axes.plot(x, y, label="given" if rank is None else f"rank {rank}", **style)
        for position, label in scale_labels(sweep).items():
            axes.annotate(label, position, textcoords="offset points", xytext=(5, 4), fontsize=7)
        chosen = _position(sweep.points[sweep.chosen])
        axes.plot(*chosen, "o", markersize=13, fillstyle="none", color="black", label="chosen")
        axes.axvline(1 - sweep.loss, color="0.6", linewidth=0.8)
        axes.margins(0.12)
        axes.set(
            xlabel="retention of the target's own scores (grey: the least allowed)",
            ylabel=f"transfer at {format_tokens(sweep.length)} tokens",
            title="Points of the sweep; numbers are scales",
        )
        legend(axes)


def scale_labels(sweep: SweepRecord) -> dict[tuple[float, float], str]:
    """Position in the figure -> the scales of the points there, such as '0.5, 1'."""
    scales: dict[tuple[float, float], list[str]] = {}
    for point in sweep.points:
        labels = scales.setdefault(_position(point), [])
        if f"{point.scale:g}" not in labels:
            labels.append(f"{point.scale:g}")
    return {position: ", ".join(labels) for position, labels in scales.items()}


def _position(point: PointRecord) -> tuple[float, float]:
    retention = point.retention.value if point.retention is not None else 1.0
    return retention, point.transfer.value if point.transfer is not None else point.score
