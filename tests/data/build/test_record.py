"""A built folder that was copied in part is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import regraft
from regraft.data.build.record import read_dataset
from regraft.errors import InputError


def test_a_shard_that_is_missing_or_cut_is_named(recipe_of_one_text: str) -> None:
    record = regraft.build_data(recipe_of_one_text, "out")
    assert read_dataset("out") == record
    shard = Path("out", record.shards[0].path)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    words = f"has {len(content) - 1:,} bytes instead of {len(content):,}; copy the folder again"
    with pytest.raises(InputError, match=words):
        read_dataset("out")
    shard.unlink()
    with pytest.raises(InputError, match="is missing; copy the folder again"):
        read_dataset("out")
    with pytest.raises(InputError, match="is not a folder of `regraft data build`"):
        read_dataset(".")
