"""`regraft demo`: the graft job of a recipe that trains its own small models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

import regraft
from regraft.commands import options
from regraft.shell.command import Command
from regraft.shell.printing import label_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from regraft.graft.record import JobRecord


@options.shell_command(threads=False)
def demo(
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", help="Folder to write. \\[default: demo-out]", show_default=False
        ),
    ] = "demo-out",
    seed: options.Seed = 2,
    dry_run: options.DryRun = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue with another seed: run again what it affects."),
    ] = False,
    overwrite: options.Overwrite = False,
) -> Command:
    """Train a small model, extend, extract, graft and evaluate: `regraft graft` on its own recipe.

    Example: regraft demo -o demo-out
    """

    def show(record: JobRecord) -> Iterable[RenderableType]:
        from regraft.demo.job import STORY
        from regraft.graft.results import summary

        yield STORY
        yield label_table(f"Job in {out}", summary(record, out))

    return Command(
        lambda: regraft.run_demo(
            out, seed=seed, overwrite=overwrite, resume=resume, dry_run=dry_run
        ),
        show,
    )
