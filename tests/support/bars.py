"""What a progress bar displays while a command works."""

from __future__ import annotations

import pytest

from regraft import progress


def shares_of(monkeypatch: pytest.MonkeyPatch, description: str) -> list[float]:
    """A list to which every bar of that description adds its share done whenever it moves."""
    shares: list[float] = []

    class Seen(progress.Bar):
        def _move(self, amount: float) -> None:
            super()._move(amount)
            if self._description == description and self._total:
                shares.append(self._done / self._total)

    monkeypatch.setattr(progress, "Bar", Seen)
    return shares
