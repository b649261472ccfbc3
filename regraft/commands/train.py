"""`regraft train`: extending a context, or recovering a graft, by a recipe."""

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

    from regraft.train.record import TrainingRecord


Schema = Annotated[bool, options.schema_option("regraft.train.recipe.recipe")]


@options.shell_command()
def train(
    recipe: Annotated[str, typer.Argument(help="A training recipe in YAML.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder to write; not needed by --dry-run.")
    ] = None,
    schema: Schema = False,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> Command:
    """Extend a model's context or recover a graft, by full fine-tuning or LoRA.

    Example: regraft train examples/extend-toy.yaml -o toy-1k

    On 8 GPUs: torchrun --nproc-per-node 8 -m regraft train recipe.yaml -o out
    """

    def show(record: TrainingRecord) -> Iterable[RenderableType]:
        from regraft.train.output.summary import summary

        yield label_table(f"Trained {record.export} in {out}", summary(record))

    return Command(
        lambda: regraft.train_model(
            recipe, out, device=device, overwrite=overwrite, resume=resume, dry_run=dry_run
        ),
        show,
    )
