"""`regraft demo`: train, extract, apply and evaluate with a small model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import regraft
from regraft.commands.options import Debug, Json, Out, Overwrite, Quiet, Seed
from regraft.shell.command import Options, run_command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from regraft.demo.result import DemoRecord


def demo(
    out: Out = "demo-out",
    seed: Seed = 2,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train, extract, apply and evaluate with a model small enough for two CPU cores.

    Example: regraft demo -o demo-out
    """

    def show(result: DemoRecord) -> Iterable[RenderableType]:
        from regraft.demo.page import render

        yield render(result)

    run_command(
        lambda: regraft.run_demo(out, seed=seed, overwrite=overwrite),
        show,
        Options(as_json, quiet, debug),
    )
