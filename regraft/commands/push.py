"""`regraft push`: an output to a repository of the Hub."""

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

    from regraft.records import PushRecord


@options.shell_command(threads=False)
def push(
    out: Annotated[str, typer.Argument(help="A folder or GGUF file that regraft wrote.")],
    repository: Annotated[str, typer.Argument(help="Where to: org/name.")],
    public: Annotated[
        bool, typer.Option("--public", help="Let everyone read it. \\[default: private]")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")
    ] = False,
) -> Command:
    """Upload an output with its card to the Hub, in one commit.

    The token is that of `hf auth login` or HF_TOKEN. An interrupted upload is continued by the same
    command.

    Example: regraft push ctx-lora org/llama-3-8b-262k-lora --dry-run
    """

    def show(record: PushRecord) -> Iterable[RenderableType]:
        from regraft.push import summary

        yield label_table(f"Uploaded {out}", summary(record))

    return Command(
        lambda: regraft.push_output(out, repository, public=public, dry_run=dry_run),
        show,
    )
