"""`regraft merge`: models and adapters merged by a recipe."""

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

    from regraft.records import AdapterRecord, MergeRecord


Schema = Annotated[bool, options.schema_option("regraft.merge.recipe.schema")]


@options.shell_command()
def merge(
    recipe: Annotated[
        str, typer.Argument(help="A recipe in YAML: mergekit's format, with keys of regraft.")
    ],
    out: options.Out,
    engine: Annotated[
        str, typer.Option(help="auto, native (streams in float32) or mergekit (its own process).")
    ] = "auto",
    as_adapter: Annotated[
        bool, typer.Option("--as-adapter", help="Write a LoRA on base_model instead of a model.")
    ] = False,
    max_shard_size: options.ShardSize = None,
    verify: options.Verify = False,
    schema: Schema = False,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> Command:
    """Merge models and adapters by a recipe, their context length included.

    Example recipe.yaml:

        merge_method: ties
        base_model: meta-llama/Meta-Llama-3-8B
        models:
          - {model: gradientai/Llama-3-8B-262k, parameters: {weight: 1.0, density: 0.5}}
          - {model: NousResearch/Hermes-2-Pro-Llama-3-8B, parameters: {weight: 1.0, density: 0.5}}
        context: {from: gradientai/Llama-3-8B-262k}

    Example: regraft merge recipe.yaml -o merged
    """

    def work() -> MergeRecord | AdapterRecord:
        from regraft.graft.merge_job import check_later_blocks

        check_later_blocks(recipe)
        return regraft.merge_models(
            recipe, out, engine=engine, as_adapter=as_adapter, max_shard_size=max_shard_size,
            verify=verify, device=device, seed=seed, overwrite=overwrite, resume=resume,
            dry_run=dry_run,
        )  # fmt: skip

    def show(record: MergeRecord | AdapterRecord) -> Iterable[RenderableType]:
        from regraft.merge.job import summary

        yield label_table(f"Merge in {out}", summary(record))

    return Command(work, show)
