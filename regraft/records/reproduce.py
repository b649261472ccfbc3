"""What makes a result reproducible: the library versions and seeds derived from names."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version

from regraft.version import VERSION


def versions() -> dict[str, str]:
    """Return the versions of regraft, the libraries it computes with, and Python.

    regraft's own is not read from the installed packages: it may run from a checkout.
    """
    libraries = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {"regraft": VERSION, **libraries, "python": platform.python_version()}


def derive_seed(seed: int, name: str) -> int:
    """Return a seed (48 bits) for one module or tensor, independent of the order of the others and
    of which others there are."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:6], "little")
