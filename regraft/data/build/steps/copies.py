"""Copies of documents so that their tokens are a given multiple of what they were."""

from __future__ import annotations

import math


class Copies:
    """How often to take each of a row of documents, `factor` times on average over their tokens.

    No document is taken more than ceil(factor) times. What is taken is never more than the multiple
    by more than half of the largest document so far.
    """

    def __init__(self, factor: float) -> None:
        self._factor, self._most = factor, math.ceil(factor)
        self._due = 0.0  # tokens

    def next(self, tokens: int) -> int:
        """Copies of the next document, which has `tokens` tokens."""
        self._due += self._factor * tokens
        copies = max(0, min(self._most, math.floor(self._due / max(1, tokens) + 0.5)))
        self._due -= copies * tokens
        return copies
