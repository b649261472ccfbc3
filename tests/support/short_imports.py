"""What makes a process of tests start sooner.

PEFT imports bitsandbytes, which has torch compile four functions as it is imported, and torch
imports its compiler for that; bitsandbytes uses the functions as they are where that fails. Typer
builds the tree of commands anew for every command line.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any
from unittest import mock


def shorten_imports() -> None:
    """Import bitsandbytes without torch's compiler, and have Typer build a command line once."""
    import torch
    import typer.main

    typer.main.get_command = cache(typer.main.get_command)
    with mock.patch.object(torch, "compile", _refuse), suppress(ImportError):
        import bitsandbytes  # noqa: F401


def _refuse(*arguments: Any, **named: Any) -> Any:
    raise RuntimeError("torch.compile is not used in tests")
