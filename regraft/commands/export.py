"""`regraft export`: a model or an adapter as one GGUF file for llama.cpp."""

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

    from regraft.records import ExportRecord


@options.shell_command()
def export(
    source: Annotated[
        str, typer.Argument(help="A model or an adapter: a folder or org/name\\[@revision].")
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="File to write: NAME.gguf.", show_default=False)
    ],
    base: Annotated[
        str | None,
        typer.Option(help="The model that an adapter belongs to. \\[default: as the adapter says]"),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float16 or float32 for the matrices. \\[default: float16; an adapter: float32]"
        ),
    ] = None,
    tokenizer: Annotated[
        bool, typer.Option(help="Put the model's tokenizer into the file.")
    ] = True,
    verify: options.Verify = False,
    dry_run: options.DryRun = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> Command:
    """Write a model, or an adapter as a LoRA, in GGUF for llama.cpp.

    A model has its RoPE and context length in the file. llama.cpp takes those of an adapter from
    its flags, which are printed.

    Example: regraft export ctx-lora -o ctx-lora.gguf
    """

    def show(record: ExportRecord) -> Iterable[RenderableType]:
        from regraft.export.job import summary

        yield label_table(f"GGUF in {out}", summary(record, out))

    return Command(
        lambda: regraft.export_gguf(
            source, out, base=base, dtype=dtype, tokenizer=tokenizer, verify=verify,
            overwrite=overwrite, resume=resume, dry_run=dry_run,
        ),
        show,
    )  # fmt: skip
