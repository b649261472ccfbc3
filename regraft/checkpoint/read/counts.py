"""Check that config.json counts no more layers than the model has tensors, before it is built."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from regraft.errors import CheckpointError

_COUNT_KEYS = re.compile(r"(?:^|_)(?:layers?|blocks|experts|labels)$|^n_?(?:layer|block|expert)s?$")
_MOST_LABELS = 1_000_000


def check_counts(config: Mapping[str, Any], tensors: int, where: str) -> None:
    """Raise CheckpointError where config.json counts more layers or experts than there are tensors.

    Such a config would be built for hours before it failed.
    """
    for level in _levels(config):
        for key, value in level.items():
            most = _MOST_LABELS if key.endswith(("labels", "experts")) else tensors
            if type(value) is int and value > most and _COUNT_KEYS.search(key):
                raise CheckpointError(
                    f"config.json of {where} says {key}: {value}, and the model has {tensors} "
                    "tensors; correct the config."
                )


def _levels(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The config and the configs nested in it, at any depth."""
    stack: list[Mapping[str, Any]] = [config]
    while stack:
        level = stack.pop()
        yield level
        stack += [value for value in level.values() if isinstance(value, dict)]
