"""Figures in one hand: matplotlib without a screen, and a palette that survives grey and
colour-blindness."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.errors import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, ordered so that neighbours differ in lightness too; every colour comes
# with its own dash and marker.
_COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), "-")
_MARKERS = ("o", "s", "^", "D", "v", "x", "P", "*")


def styles() -> Iterator[dict[str, Any]]:
    """Line styles without end: colour, dash and marker that belong together."""
    for colour, dash, marker in cycle(zip(_COLOURS, _DASHES, _MARKERS, strict=True)):
        yield {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4}


@contextmanager
def figure(
    path: Path, columns: int = 1, *, width: float = 5.2, height: float = 3.6
) -> Iterator[Any]:
    """Axes (one, or a list of `columns`) to draw on; saved to `path` as PNG at 150 dpi."""
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: half a second less to import

    with matplotlib.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.alpha": 0.3, "legend.frameon": False, "svg.hashsalt": "regraft",
         "text.parse_math": False}  # a model's name may hold dollar signs
    ):  # fmt: skip
        drawn = Figure(figsize=(width * columns, height), layout="constrained")
        axes = drawn.subplots(1, columns, squeeze=False)
        yield list(axes[0]) if columns > 1 else axes[0][0]
        # no date and no version in the file: the same result gives the same bytes
        with writing(path):
            drawn.savefig(path, dpi=150, metadata={"Software": None})


def from_zero(axes: Axes) -> None:
    """The y axis from 0 to a little above the highest marker, so that none is cut."""
    axes.set_ylim(0, 1.08 * axes.dataLim.ymax or 1)


def legend(axes: Axes) -> None:
    """A legend only where there is something to tell apart."""
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=8)
