"""The time left of a job, from the estimates of its stages and the times of the finished ones."""

from __future__ import annotations

import time
from collections.abc import Mapping

from regraft.units import format_duration

_TRUSTED = 30.0  # seconds of work after which a job's own speed counts as much as the estimates


class Timing:
    """The stages of a job in their order, their estimated seconds and their real ones.

    estimates: seconds by stage name, None where a stage cannot be estimated yet. A stage's name
    begins with its kind, as in graft/hermes.
    """

    def __init__(self, estimates: Mapping[str, float | None]) -> None:
        self._estimates = dict(estimates)
        self._waiting = list(estimates)
        self._taken: dict[str, float] = {}
        self._running: str | None = None
        self._began = 0.0

    def start(self, name: str) -> None:
        """The stage begins now."""
        self._running, self._began = name, time.monotonic()
        self._waiting.remove(name)

    def finish(self) -> float:
        """The stage that runs has ended. Returns its seconds."""
        assert self._running is not None
        seconds = self._taken[self._running] = time.monotonic() - self._began
        self._running = None
        return seconds

    def leave_out(self, name: str) -> None:
        """The stage is not run, or failed."""
        if name == self._running:
            self._running = None
        else:
            self._waiting.remove(name)

    def left(self) -> tuple[float, bool]:
        """(seconds to the end of the job, whether every stage is among them)."""
        seconds, complete = 0.0, True
        for name in self._waiting:
            expected = self._expected(name)
            seconds += expected or 0.0
            complete &= expected is not None
        if self._running is not None:
            expected = self._expected(self._running)
            seconds += max(0.0, (expected or 0.0) - (time.monotonic() - self._began))
            complete &= expected is not None
        return seconds, complete

    def describe(self) -> str:
        """The stage that runs, those after it, and the time left: one line."""
        number = len(self._estimates) - len(self._waiting)
        parts = [f"stage {number} of {len(self._estimates)}"]
        if self._running is not None:
            parts[0] += f", {self._running}"
        if self._waiting:
            more = len(self._waiting) - 2
            then = ", ".join(self._waiting[:2])
            parts.append(f"then {then}{f' and {more} more' if more > 0 else ''}")
        seconds, complete = self.left()
        if seconds >= 1:
            about = "about" if complete else "more than"
            parts.append(f"{about} {format_duration(seconds)} left in all")
        return "; ".join(parts)

    def _expected(self, name: str) -> float | None:
        """Seconds of a stage: its estimate, corrected by finished stages of its kind, else by all
        finished stages; without an estimate the mean of its kind, else None."""
        alike = [other for other in self._taken if _kind(other) == _kind(name)]
        estimate = self._estimates[name]
        if estimate is None:
            return sum(self._taken[other] for other in alike) / len(alike) if alike else None
        known = [other for other in alike if self._estimates[other]]
        if known:
            return estimate * self._ratio(known, 0.0)
        others = [other for other in self._taken if self._estimates[other]]
        return estimate * self._ratio(others, _TRUSTED)

    def _ratio(self, names: list[str], prior: float) -> float:
        """Real to estimated seconds of stages, with `prior` seconds that were as estimated."""
        estimated = sum(self._estimates[name] or 0.0 for name in names)
        return (sum(self._taken[name] for name in names) + prior) / (estimated + prior)


def _kind(name: str) -> str:
    return name.partition("/")[0]
