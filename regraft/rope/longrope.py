"""Factors of longrope: by formula, and by an evolutionary search on a score.

After "LongRoPE2" (Shang et al., arXiv 2502.20082): pairs of dimensions whose wavelength is longer
than the trained context have never made a full turn, and are slowed down by at least the ratio of
lengths; the first of them, the critical one, is in practice an earlier pair than theory says. Pairs
before it are slowed down as NTK-aware scaling does, by a power that reaches the critical pair's
factor there. The search moves the critical pair and the factors from it on; its score is the NLL of
needles' answers, because plain perplexity hardly depends on the long range. Here the population is
small, and pairs before the critical one are not searched.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

PARENTS = 4
"""Candidates of which the next ones are mutations."""
_LARGEST = 2.0  # no factor is larger than so many times the ratio of lengths


@dataclass(frozen=True)
class Candidate:
    """Factors of a head's pairs of dimensions, the fastest first. critical: index of the first that
    `beyond` belongs to; beyond: the factors from it on, never falling."""

    critical: int
    beyond: tuple[float, ...]

    @property
    def factors(self) -> list[float]:
        """The factors of all pairs: those before the critical one are a power of its factor."""
        first = self.beyond[0]
        before = [first ** (i / self.critical) for i in range(self.critical)]
        return [*before, *self.beyond]


def critical_pair(pairs: int, theta: float, trained: int) -> int:
    """Index of the first pair with a wavelength above `trained` tokens, 1 to pairs - 1. pairs: of
    rotated dimensions of a head."""
    turns = math.log(trained / (2 * math.pi)) / math.log(theta) if trained > 2 * math.pi else 0.0
    return min(max(math.ceil(pairs * turns), 1), pairs - 1)


def long_factors(pairs: int, theta: float, trained: int, target: int) -> list[float]:
    """The factors by formula: the ratio of lengths from the critical pair on, a power of it before.

    pairs: of rotated dimensions of a head; trained, target: lengths in tokens.
    """
    critical, ratio = critical_pair(pairs, theta, trained), max(target / trained, 1.0)
    return Candidate(critical, (ratio,) * (pairs - critical)).factors


def search_factors(
    score: Callable[[list[float]], float],
    pairs: int,
    theta: float,
    trained: int,
    target: int,
    *,
    budget: int,
    seed: int,
) -> tuple[list[float], float]:
    """(the factors with the lowest score, their score) of `budget` candidates.

    score: of the factors of all pairs, such as the NLL of needles at `target`. The first candidates
    have the critical pair of the formula and up to three earlier ones, without further change.
    """
    rng, ratio = random.Random(seed), max(target / trained, 1.0)
    formula = critical_pair(pairs, theta, trained)
    starts = range(formula, max(formula - PARENTS, 0), -1)
    waiting = [Candidate(critical, (ratio,) * (pairs - critical)) for critical in starts]
    scored: dict[Candidate, float] = {}
    while len(scored) < budget:
        candidate = waiting.pop(0) if waiting else _mutation(rng, _best(scored), pairs, ratio)
        if candidate not in scored:
            scored[candidate] = score(candidate.factors)
    best = _best(scored)[0]
    return best.factors, scored[best]


def _best(scored: dict[Candidate, float]) -> Sequence[Candidate]:
    return sorted(scored, key=scored.__getitem__)[:PARENTS]


def _mutation(
    rng: random.Random, parents: Sequence[Candidate], pairs: int, ratio: float
) -> Candidate:
    """A parent with another critical pair or other factors from it on."""
    parent = rng.choice(parents)
    critical, beyond = parent.critical, list(parent.beyond)
    if rng.random() < 0.3:
        moved = min(max(critical + rng.choice((-1, 1)), 1), pairs - 1)
        beyond = beyond[moved - critical :] if moved > critical else [beyond[0], *beyond]
        beyond, critical = beyond[-(pairs - moved) :], moved
    else:
        # One change for all and one for each: a level, and a slope over the pairs.
        level = rng.gauss(0, 0.15)
        beyond = [factor * math.exp(level + rng.gauss(0, 0.05)) for factor in beyond]
    largest = 1.0
    for i, factor in enumerate(beyond):
        largest = beyond[i] = min(max(factor, largest), _LARGEST * ratio)
    return Candidate(critical, tuple(beyond))
