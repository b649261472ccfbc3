"""Chooses the rank and scale of a sweep: the most transfer within a stated loss of retention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.evaluate.report.tables import format_ratio
from regraft.evaluate.statistics import Ratio
from regraft.units import format_tokens


def point_label(rank: str | None, scale: float) -> str:
    """The name of a point, such as 'rank 16, scale 1'. rank: None where the adapter is given."""
    return f"scale {scale:g}" if rank is None else f"rank {rank}, scale {scale:g}"


@dataclass(frozen=True, kw_only=True)
class PointRecord:
    """A point of a sweep. rank: as in the recipe; score: at the greatest length; transfer: the
    share of the donor's gain there; retention: of the target's own scores within its own context.
    Either is None where there is nothing to gain or to retain. bytes, error: of the adapter as
    stored, error relative to the change it approximates; None where its record does not say."""

    rank: str | None
    scale: float
    score: float
    transfer: Ratio | None
    retention: Ratio | None
    bytes: int | None = None
    error: float | None = None

    @property
    def label(self) -> str:
        return point_label(self.rank, self.scale)


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """A sweep of one target. length: where transfer is measured; loss: of retention that is
    allowed; chosen: the index of the point; why: a sentence."""

    length: int
    loss: float
    points: list[PointRecord]
    chosen: int
    why: str


def choose(points: Sequence[PointRecord], length: int, loss: float) -> SweepRecord:
    """The point with the most transfer among those that retain at least 1 - `loss`; the one that
    retains most if none does; the first of equal ones. Without transfer, scores are compared."""
    enough = [p for p in points if p.retention is None or p.retention.value >= 1 - loss]
    required = f"{1 - loss:.0%} of the target's own scores"
    if not enough:
        best = max(points, key=lambda p: p.retention.value if p.retention else 0.0)
        why = (
            f"{best.label}: no point retains {required}, and this one retains the most, "
            f"{format_ratio(best.retention)}."
        )
    else:
        best = max(enough, key=_gain)
        measure = (
            f"score {best.score:.2f} (transfer is n/a)"
            if best.transfer is None
            else f"transfer {format_ratio(best.transfer)}"
        )
        measured = any(point.retention is not None for point in points)
        among = (
            f"the {len(enough)} of {len(points)} points that retain at least {required}"
            if measured
            else f"{len(points)} points; retention is n/a, since no score of the target above 0 "
            "was measured within its own context"
        )
        why = f"{best.label}: {measure} at {format_tokens(length)} tokens, the most among {among}."
    return SweepRecord(
        length=length, loss=loss, points=list(points), chosen=points.index(best), why=why
    )


def _gain(point: PointRecord) -> tuple[float, float]:
    transfer = point.transfer.value if point.transfer is not None else float("-inf")
    return transfer, point.score
