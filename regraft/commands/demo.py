"""`regraft demo`: train, extract, apply and evaluate with a small model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import regraft
from regraft.commands import options
from regraft.shell.command import Command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from regraft.demo.result import DemoRecord


@options.shell_command(threads=False)
def demo(
    out: options.Out = "demo-out",
    seed: options.Seed = 2,
    overwrite: options.Overwrite = False,
) -> Command:
    """Train, extract, apply and evaluate with a model small enough for two CPU cores.

    Example: regraft demo -o demo-out
    """

    def show(result: DemoRecord) -> Iterable[RenderableType]:
        from regraft.demo.page import render

        yield render(result)

    return Command(
        lambda: regraft.run_demo(out, seed=seed, overwrite=overwrite),
        show,
    )
