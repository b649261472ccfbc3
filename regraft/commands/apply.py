"""`regraft apply`: a model with an adapter merged into it."""

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

    from regraft.records import GraftRecord


@options.shell_command()
def apply(
    adapter: Annotated[str, typer.Argument(help="An adapter: a folder or org/name\\[@revision].")],
    checkpoint: Annotated[str, typer.Argument(help="The model to add the adapter to.")],
    out: options.Out,
    scale: Annotated[float, typer.Option(help="Factor of the adapter's change.")] = 1.0,
    context: Annotated[
        str | None,
        typer.Option(
            help="RoPE and context length of the output: adapter, checkpoint, or values such as "
            "theta=283461213,length=256k. \\[default: adapter, if CHECKPOINT has its base's]"
        ),
    ] = None,
    guard: Annotated[
        str | None,
        typer.Option(
            help="A model that CHECKPOINT was fine-tuned from: weights that moved much from it get "
            "less of the change."
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="bfloat16, float16 or float32. \\[default: as CHECKPOINT stores it]"),
    ] = None,
    max_shard_size: options.ShardSize = None,
    verify: options.Verify = False,
    force: options.Force = False,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> Command:
    """Write CHECKPOINT with ADAPTER merged into it, its context length included.

    ADAPTER can be any LoRA in PEFT's format.

    Example: regraft apply ctx-lora NousResearch/Hermes-2-Pro-Llama-3-8B -o hermes-262k
    """

    def show(record: GraftRecord) -> Iterable[RenderableType]:
        from regraft.adapters.apply.apply import summary

        yield label_table(f"Graft in {out}", summary(record))

    return Command(
        lambda: regraft.apply_lora(
            adapter, checkpoint, out, scale=scale, context=context, guard=guard,
            max_shard_size=max_shard_size, dtype=dtype, verify=verify, device=device, force=force,
            overwrite=overwrite, resume=resume, dry_run=dry_run,
        ),
        show,
    )  # fmt: skip
