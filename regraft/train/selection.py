"""Which weights a recovery exports: the least drift on short text that keeps the long range.

A fine-tune on short text may lose the long context that the graft brought, and the drift on short
text does not show it. So a recovery with `watch` judges its weights at every validation. The
graft as it was before the first step is the reference: weights with a higher NLL at the farthest
positions, or with fewer needles, by more than the bounds of `veto` are never exported. The best
weights so far are on disk, sharded like a training state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regraft import progress
from regraft.parallel import Mesh
from regraft.train import state
from regraft.train.recipe.validation import Veto
from regraft.train.record import RecoveryChoice, RecoveryPoint, ValidationRecord
from regraft.train.run_state import RunState
from regraft.train.step.learner import Learner

BEST = "best"
"""Folder in `states` for the best weights."""
PATIENCE = 3
"""A recovery ends after so many vetoes in succession: the long range does not come back."""


class Selection:
    """Judges the weights of a recovery and stores the best in `folder`."""

    def __init__(self, bounds: Veto, folder: Path, mesh: Mesh) -> None:
        self.bounds, self._folder, self._mesh = bounds, folder, mesh
        self._saved: int | None = None  # the best step that the newest training state knows

    def add(
        self, run: RunState, learner: Learner, drift: float | None, result: ValidationRecord
    ) -> RecoveryPoint:
        """Judge the current weights, and store them if they are the best so far. Collective."""
        point = judge(run.points, drift, result, self.bounds)
        run.points.append(point)
        if point.veto is not None:
            progress.note(f"step {run.step}: not to be exported, because {point.veto}")
        if best(run.points) is point:
            state.keep_only(self._folder, [] if self._saved is None else [self._saved], self._mesh)
            state.save_parameters(self._folder, run.step, learner, self._mesh)
        return point

    def saved(self, run: RunState) -> None:
        """The newest training state is that of `run`: delete weights that it does not need.
        Collective."""
        if run.points:
            self._saved = best(run.points).step
            state.keep_only(self._folder, [self._saved], self._mesh)

    def restore(self, run: RunState, learner: Learner) -> None:
        """Put the best weights into the learner. Collective."""
        step = best(run.points).step
        if step != run.step:
            state.load_parameters(self._folder, step, learner, self._mesh)
            progress.note(f"Exporting the weights after step {step} of {run.step}.")


def judge(
    earlier: Sequence[RecoveryPoint], drift: float | None, result: ValidationRecord, bounds: Veto
) -> RecoveryPoint:
    """The point at a validation. earlier: the points before it, of which the first is the graft's;
    none: this is the graft's."""
    where, far = list(result.nll.items())[-1]
    needles = None if result.needle is None else result.needle.accuracy
    reasons = []
    if earlier:
        graft = earlier[0]
        if far > graft.far_nll + bounds.far:
            reasons.append(
                f"NLL at positions {where} is {far - graft.far_nll:.3f} nats above the graft's"
            )
        if needles is not None and needles < (graft.needles or 0.0) - bounds.needles:
            reasons.append(f"needles fell from {graft.needles:.0%} to {needles:.0%}")
    return RecoveryPoint(
        step=result.step, drift=drift, far_nll=far, needles=needles,
        veto=" and ".join(reasons) or None,
    )  # fmt: skip


def best(points: Sequence[RecoveryPoint]) -> RecoveryPoint:
    """Of the points without a veto the one with the least drift, or the last where there is no
    drift. The first point, the graft's, has no veto."""
    allowed = [point for point in points if point.veto is None]
    with_drift = [point for point in allowed if point.drift is not None]
    return min(with_drift, key=lambda point: point.drift or 0.0) if with_drift else allowed[-1]


def is_hopeless(points: Sequence[RecoveryPoint]) -> bool:
    """Whether the last `PATIENCE` points all have a veto."""
    last = points[-PATIENCE:]
    return len(last) == PATIENCE and all(point.veto for point in last)


def choice_of(points: Sequence[RecoveryPoint], bounds: Veto, positions: str) -> RecoveryChoice:
    """What was exported and why. positions: those of the points' far_nll, such as '512-1024'."""
    chosen, vetoed = best(points), sum(point.veto is not None for point in points)
    measure = "least drift" if chosen.drift is not None else "last weights"
    reason = f"the {measure} of {len(points) - vetoed} points that keep the long range"
    if vetoed:
        reason += f"; {vetoed} more do not, the last because {_last_veto(points)}"
    return RecoveryChoice(
        step=chosen.step, reason=reason, far=bounds.far, needles=bounds.needles,
        positions=positions, points=list(points),
    )  # fmt: skip


def _last_veto(points: Sequence[RecoveryPoint]) -> str:
    return next(f"{point.veto} (step {point.step})" for point in reversed(points) if point.veto)
