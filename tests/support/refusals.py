"""The checks that hold for every refusal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from regraft.errors import InputError


def refusal_of(call: Callable[..., object], *arguments: object, **options: object) -> str:
    """The message of the InputError that the call raises: one line, with exit code 2."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    return message
