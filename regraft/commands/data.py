"""`regraft data build`: text for training, by a recipe."""

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

    from regraft.data.build.record import DatasetRecord


Schema = Annotated[bool, options.schema_option("regraft.data.build.recipe")]

data = typer.Typer(help="Make text for training.", no_args_is_help=True)


@data.command("build")
@options.shell_command(threads=False)
def build(
    recipe: Annotated[str, typer.Argument(help="A data recipe in YAML.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder to write; not needed by --dry-run.")
    ] = None,
    schema: Schema = False,
    workers: Annotated[
        int, typer.Option(help="Processes; the output does not depend on their number.")
    ] = 1,
    executor: Annotated[
        str | None,
        typer.Option(
            help="local, slurm or ray: read sources in tasks of datatrove, with the recipe's "
            "`executor` block; the output is the same."
        ),
    ] = None,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> Command:
    """Build text for long context from sources by steps: filtered, deduplicated, cut or joined to
    length, mixed, with a manifest, a card and a page.

    Example: regraft data build examples/data-prolong.yaml -o long-text
    """

    def show(record: DatasetRecord) -> Iterable[RenderableType]:
        from regraft.data.build.report.card import summary

        yield label_table(f"Text in {out}", summary(record))

    return Command(
        lambda: regraft.build_data(
            recipe, out, workers=workers, executor=executor, device=device, overwrite=overwrite,
            resume=resume, dry_run=dry_run,
        ),
        show,
    )  # fmt: skip
