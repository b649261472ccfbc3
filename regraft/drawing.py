"""One style for all figures: matplotlib without a screen, and lines that differ without colour."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from regraft.errors import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, ordered so that neighbours differ in lightness, too; every colour has its
# own dash and marker.
_COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
_Dash = str | tuple[int, tuple[int, ...]]
_DASHES: tuple[_Dash, ...] = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1)),
    (0, (1, 1)),
    (0, (3, 1, 1, 1)),
    "-",
)
_MARKERS = ("o", "s", "^", "D", "v", "x", "P", "*")


class LineStyle(TypedDict, total=False):
    """matplotlib's keyword arguments of a line."""

    color: str
    linestyle: _Dash
    marker: str
    markersize: float
    linewidth: float


def styles() -> Iterator[LineStyle]:
    """matplotlib's arguments for one line after another: colour, dash and marker; endless."""
    for colour, dash, marker in cycle(zip(_COLOURS, _DASHES, _MARKERS, strict=True)):
        yield {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4}


@contextmanager
def figure(
    path: Path, columns: int = 1, *, width: float = 5.2, height: float = 3.6
) -> Iterator[Any]:
    """Yield axes, one or a list of `columns`, and save the figure to `path` (PNG, 150 dpi).

    width, height: of one column, in inches. The file has no date or version: the same figure gives
    the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: half a second less to import

    with matplotlib.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.alpha": 0.3, "legend.frameon": False, "svg.hashsalt": "regraft",
         "text.parse_math": False}  # a model's name may hold dollar signs
    ):  # fmt: skip
        canvas = Figure(figsize=(width * columns, height), layout="constrained")
        axes = canvas.subplots(1, columns, squeeze=False)
        yield list(axes[0]) if columns > 1 else axes[0][0]
        save(canvas, path)


def save(canvas: Figure, path: Path) -> None:
    """Render a figure to a PNG file of 150 dots an inch."""
    with writing(path):
        canvas.savefig(path, dpi=150, metadata={"Software": None})


def from_zero(axes: Axes) -> None:
    """Let the y axis go from 0 to a little above the highest marker."""
    axes.set_ylim(0, 1.08 * axes.dataLim.ymax or 1)


def logarithmic(axes: Axes) -> None:
    """Make both axes logarithmic, with plain numbers at the ticks: matplotlib's own labels are
    formulas, which `figure` does not render."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def whole_numbers(axes: Axes) -> None:
    """Put the ticks of the x axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True))


def legend(axes: Axes) -> None:
    """Add a legend if there is more than one label."""
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=8)
