"""`regraft inspect`: a model or adapter described, or two compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

import regraft
from regraft.commands import options
from regraft.shell.command import Command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from regraft.adapters.inspect.inspect import Inspection


@options.shell_command()
def inspect(
    path: Annotated[
        str, typer.Argument(help="A model or adapter: a folder or org/name\\[@revision].")
    ],
    other: Annotated[str | None, typer.Argument(help="A second one, to compare with.")] = None,
    intruders: Annotated[
        bool, typer.Option("--intruders", help="Count the intruder directions of the change.")
    ] = False,
    device: options.Device = "auto",
) -> Command:
    """Describe a model or adapter; with OTHER, how the two are related.

    Example: regraft inspect base extended
    """

    def show(result: Inspection) -> Iterable[RenderableType]:
        from regraft.adapters.inspect.tables import tables

        return tables(result)

    return Command(
        lambda: regraft.inspect_model(path, other, intruders=intruders, device=device),
        show,
    )
