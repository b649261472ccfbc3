"""Types of values in recipes."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
from pydantic import ValidationError

from regraft.recipe_values import Located


class Place(Located[Literal["file", "table"]]):
    kinds: ClassVar[tuple[str, ...]] = ("file", "table")
    file: str | None = None
    table: int | None = None


def test_a_located_block_has_exactly_one_of_its_keys():
    place = Place(table=3)
    assert (place.kind, place.location) == ("table", "3")
    for keys in ({}, {"file": "a", "table": 3}):
        with pytest.raises(ValidationError, match="give one of file, table"):
            Place.model_validate(keys)
