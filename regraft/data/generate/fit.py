"""The number of units with which a generated text has a given number of tokens."""

from __future__ import annotations

from collections.abc import Callable

from regraft.errors import InputError

_TRIES = 64
_UNIT = 20.0  # tokens in about a sentence: the first guess of the search


class TooShort(InputError):
    """The necessary parts of a prompt have more tokens than the budget."""


class UsedUp(InputError):
    """A text has fewer units than requested."""


def fit(
    build: Callable[[int], str],
    count: Callable[[str], int],
    budget: int,
    *,
    least: int = 0,
    what: str = "prompt",
) -> int:
    """The greatest number of units with which `build(units)` fits into `budget` tokens.

    build: makes a text with this many units of haystack; more units make it longer. A secant search
    within a bracket that is halved in every third step: about six calls of `count`, at most 64.
    Raises TooShort if `least` units are already too long, and the UsedUp of `build` if all its text
    does not fill the budget.
    """
    low, low_tokens = least, count(build(least))
    if low_tokens > budget:
        raise TooShort(
            f"A {what} takes at least {low_tokens} tokens, and there is room for {budget}; "
            "raise --lengths or leave the task out."
        )
    high: int | None = None
    high_tokens, rate = 0, _UNIT
    used_up: UsedUp | None = None  # by `high` units
    for tries in range(_TRIES):
        if low_tokens == budget or (high is not None and high - low < 2):
            break
        step = max(1, int((budget - low_tokens) / rate))
        if high is None:
            step += tries > 1  # a step too far closes the bracket
        else:
            step = (high - low) // 2 if tries % 3 == 2 else min(step, high - low - 1)
        at = low + step
        try:
            tokens = count(build(at))
        except UsedUp as error:
            high, high_tokens, used_up = at, 0, error
            continue
        if tokens > budget:
            high, high_tokens, used_up = at, tokens, None
        else:
            rate = rate if high_tokens else max((tokens - low_tokens) / step, 0.25)
            low, low_tokens = at, tokens
        if high is not None and high_tokens > low_tokens:
            rate = (high_tokens - low_tokens) / (high - low)
    if used_up is not None and low_tokens < budget:
        raise used_up
    return low
