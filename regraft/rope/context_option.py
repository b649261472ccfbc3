"""The `--context` option: a context written as `theta=283461213,length=256k`."""

from __future__ import annotations

from typing import Any

from regraft.errors import InputError, did_you_mean
from regraft.rope.context import ContextSpec
from regraft.rope.extend import extend_context
from regraft.units import parse_tokens

# Each key of the option and the argument of `extend_context` that it sets.
_ARGUMENTS = {
    "theta": "theta",
    "length": "length",
    "rope_type": "rope_type",
    "family": "rope_type",
    "factor": "factor",
    "original": "original",
}


def parse_context(text: str, base: ContextSpec) -> ContextSpec:
    """The context that `--context` gives, where `base` has the values that it leaves out.

    text: key=value pairs with commas between; keys: theta, length, rope_type (or family), factor,
    original. Raises InputError for an unknown key (with the closest known one), a repeated key, a
    value that is no number, and whatever `extend_context` refuses.
    """
    values: dict[str, Any] = {}
    for item in text.split(","):
        key, sign, value = (part.strip() for part in item.partition("="))
        if not sign or not value:
            raise InputError(
                f"--context: '{item.strip()}' is not key=value, such as theta=8000000,length=128k."
            )
        if key not in _ARGUMENTS:
            raise InputError(
                f"--context: '{key}' is no setting{did_you_mean(key, _ARGUMENTS)}; "
                f"choose from {', '.join(_ARGUMENTS)}."
            )
        name = _ARGUMENTS[key]
        if name in values:
            raise InputError(f"--context: '{key}' is given twice; keep one.")
        values[name] = _parse_value(name, key, value)
    return extend_context(base, **values)


def _parse_value(name: str, key: str, value: str) -> int | float | str:
    if name in ("length", "original"):
        return parse_tokens(value)
    if name == "rope_type":
        return value
    try:
        return float(value.replace("_", ""))
    except ValueError:
        raise InputError(f"--context: {key}={value} is not a number.") from None
