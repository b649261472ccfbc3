"""Seeds and versions that are stored with a result."""

from __future__ import annotations

from regraft.records import derive_seed


def test_seed_depends_only_on_base_seed_and_name() -> None:
    assert derive_seed(0, "a") == derive_seed(0, "a")
    assert len({derive_seed(seed, name) for seed in (0, 1) for name in "ab"}) == 4
