"""Sizes as people write them: token counts (64k, 1M; binary), bytes (300MB, 1.5GiB), plans."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from regraft.errors import InputError

_TOKENS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_BYTES = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "kib": 2**10,
    "m": 10**6, "mb": 10**6, "mib": 2**20,
    "g": 10**9, "gb": 10**9, "gib": 2**30,
    "t": 10**12, "tb": 10**12, "tib": 2**40,
}  # fmt: skip


def parse_tokens(text: str | int, option: str = "") -> int:
    """`8k` -> 8192, `1M` -> 1048576, `262144` -> 262144.

    k, M and G are powers of 1024, as is usual for context lengths. option: to name in an error.
    Raises InputError unless the text is a whole number of tokens.
    """
    expected = "a token count such as 8192, 64k or 1M"
    subject = f"{option} '{text}'".strip()
    value = _parse(str(text), _TOKENS, f"{subject} is not {expected}.")
    if value < 1 or value != int(value):
        raise InputError(f"{subject} is not a whole number of at least 1; give {expected}.")
    return int(value)


def parse_bytes(text: str | int, option: str = "") -> int:
    """`300MB` -> 300000000, `1GiB` -> 1073741824, `0.7kib` -> 717 (rounded to the nearest byte); a
    bare number is bytes. option: to name in an error. Raises InputError for what rounds to less
    than one byte."""
    expected = "a size such as 300MB or 1.5GiB"
    subject = f"{option} '{text}'".strip()
    value = round(_parse(str(text), _BYTES, f"{subject} is not {expected}."))
    if value < 1:
        raise InputError(f"{subject} is less than one byte; give {expected}.")
    return value


def _parse(text: str, units: dict[str, int], refusal: str) -> Decimal:
    """The number with its unit, as a decimal: as a float 2.05 GB would not be whole. refusal: the
    message for another text."""
    match = re.fullmatch(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in units:
        raise InputError(refusal)
    return Decimal(match[1].replace("_", "").replace(",", "")) * units[match[2].lower()]


def format_bytes(n: float) -> str:
    """Decimal units, three significant digits: 335544320 -> '336 MB'."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n) < 999.5 or unit == "TB":
            return f"{n:.0f} {unit}" if unit == "B" or abs(n) >= 99.95 else f"{n:.3g} {unit}"
        n /= 1000
    raise AssertionError


def format_tokens(n: int) -> str:
    """8192 -> '8k', 1048576 -> '1M', 12000 -> '12000'."""
    for unit, size in (("M", 1024**2), ("k", 1024)):
        if n >= size and n % size == 0:
            return f"{n // size}{unit}"
    return str(n)


def counted(n: int, noun: str) -> str:
    """'1 file', '1,200 files'. noun: one whose plural ends in s."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def plan_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The plan of a dry run as (label, text): ('read', '32.1 GB') for {'read_bytes': 32121044992}.

    Labels of text are as they are: they may hold a name from the user. 'seconds' is an estimate of
    the time that the command takes.
    """
    rows = []
    for name, value in plan.items():
        if isinstance(value, str):
            rows.append((name, value))
        elif name == "seconds":
            rows.append(("time", format_estimate(value)))
        elif name.endswith("_bytes"):
            rows.append((name.removesuffix("_bytes").replace("_", " "), format_bytes(value)))
        else:
            rows.append((name.replace("_", " "), str(value)))
    return rows


def format_duration(seconds: float) -> str:
    """A time in one unit, no more exact than an estimate is: 5400 -> '1.5 h'."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def format_estimate(seconds: float) -> str:
    """An estimated time as text: 400 -> 'about 6.7 min'."""
    return f"about {format_duration(seconds)}" if seconds >= 0.1 else "less than 0.1 s"


def format_share(share: float | None) -> str:
    """A share of the base, such as '2.12%'; None where the base is zero."""
    return "n/a (the base is zero)" if share is None else f"{share:.2%}"
