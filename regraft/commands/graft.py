"""`regraft graft`: the whole job, from a recipe to grafted models and a page on them."""

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


Schema = Annotated[bool, options.schema_option("regraft.graft.recipe")]


@options.shell_command()
def graft(
    recipe: Annotated[str, typer.Argument(help="A graft recipe in YAML.")],
    out: options.Out,
    until: Annotated[
        str | None,
        typer.Option(help="Last stage to run: a name such as graft/hermes, or a kind: graft."),
    ] = None,
    from_stage: Annotated[
        str | None,
        typer.Option("--from", help="Run this stage and all after it again, even if unchanged."),
    ] = None,
    schema: Schema = False,
    device: options.Device = "auto",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, print the stages and what they take; write nothing.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue with a changed recipe: run again what the change affects."
        ),
    ] = False,
    overwrite: options.Overwrite = False,
) -> Command:
    """Extract, apply or merge, recover and evaluate by one recipe; run it again to continue.

    Example recipe.yaml:

        base: meta-llama/Meta-Llama-3-8B
        extended: gradientai/Llama-3-8B-262k
        targets: [NousResearch/Hermes-2-Pro-Llama-3-8B]
        ranks: [16, 64]
        evaluate: {suite: "needle,perplexity,drift", lengths: [8k, 64k]}

    Example: regraft graft recipe.yaml -o out
    """

    def show(record: JobRecord) -> Iterable[RenderableType]:
        from regraft.graft.results import summary

        yield label_table(f"Job in {out}", summary(record, out))

    return Command(
        lambda: regraft.graft_model(
            recipe, out, until=until, from_stage=from_stage, device=device, overwrite=overwrite,
            resume=resume, dry_run=dry_run,
        ),
        show,
    )  # fmt: skip
