"""`regraft plan`: memory and time of a training, estimated."""

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

    from regraft.train.estimate.plan import TrainingPlan


@options.shell_command(threads=False)
def plan(
    recipe: Annotated[str, typer.Argument(help="A training recipe in YAML.")],
    gpus: Annotated[
        str | None,
        typer.Option(
            help="GPUs, such as 8xH100-80. \\[default: this machine's GPUs, else its CPU]"
        ),
    ] = None,
    host_memory: Annotated[
        str | None, typer.Option(help="Memory of all nodes together, such as 1TB.")
    ] = None,
    trace: Annotated[
        bool,
        typer.Option(
            help="Also run every stage's step by shape alone and count bytes; takes minutes."
        ),
    ] = False,
) -> Command:
    """Estimate memory and time of a training and what would reduce them; nothing is run.

    Example: regraft plan examples/train-pose-lora.yaml --gpus H200 --host-memory 128GiB
    """

    def show(result: TrainingPlan) -> Iterable[RenderableType]:
        from regraft.train.estimate.plan_text import lines

        yield label_table(f"Plan of {recipe}", lines(result))

    return Command(
        lambda: regraft.plan_training(recipe, gpus=gpus, host_memory=host_memory, trace=trace),
        show,
    )
