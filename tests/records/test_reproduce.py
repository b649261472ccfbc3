"""Seeds and versions that are stored with a result."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from regraft import __version__
from regraft.records import derive_seed, reproduce


def test_seed_depends_only_on_base_seed_and_name() -> None:
    assert derive_seed(0, "a") == derive_seed(0, "a")
    assert len({derive_seed(seed, name) for seed in (0, 1) for name in "ab"}) == 4


def test_versions_are_known_in_a_checkout_that_is_not_installed(monkeypatch) -> None:
    def not_installed(package: str) -> str:
        if package == "regraft":
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(reproduce, "version", not_installed)
    assert reproduce.versions()["regraft"] == __version__
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == __version__
