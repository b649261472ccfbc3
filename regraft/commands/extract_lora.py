"""`regraft extract-lora`: the difference between two models as a LoRA adapter."""

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

    from regraft.records import AdapterRecord


@options.shell_command()
def extract_lora(
    base: Annotated[
        str, typer.Argument(help="The original model: a folder or org/name\\[@revision].")
    ],
    extended: Annotated[
        str, typer.Argument(help="The model trained from BASE for a longer context.")
    ],
    out: options.Out,
    rank: Annotated[
        str | None,
        typer.Option(
            help="A number, or auto: the singular values above the rounding of the stored weights. "
            "\\[default: 64]"
        ),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            help="Choose ranks that capture this share of the energy above rounding: 0.9."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Choose ranks so that the adapter has this size, such as 300MB."),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="portable: one rank, read by PEFT, vLLM, SGLang and llama.cpp; compact: a rank "
            "per module, PEFT only; exact: compact plus the differences of norms, embeddings and "
            "head."
        ),
    ] = "portable",
    modules: Annotated[
        str,
        typer.Option(
            help="all-linear, attention, mlp, last parts of module names, or regular expressions; "
            "separated by commas."
        ),
    ] = "all-linear",
    dtype: Annotated[
        str, typer.Option(help="Type of the stored factors: bfloat16, float16 or float32.")
    ] = "bfloat16",
    exact: Annotated[
        bool, typer.Option("--exact", help="Decompose by LAPACK's full SVD (slow).")
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Minimise the error on the inputs that projections get in EXTENDED on this text, "
            "a file (.txt, .jsonl with the field text, .parquet) or a folder of text files.",
        ),
    ] = None,
    calibrate_length: Annotated[
        str | None,
        typer.Option(help="Tokens of a calibration row. \\[default: 8k, at most the context]"),
    ] = None,
    calibrate_tokens: Annotated[
        str | None, typer.Option(help="Tokens of all calibration rows. \\[default: 64k]")
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Load the adapter with PEFT and compare every module.")
    ] = True,
    full_fingerprint: Annotated[
        bool, typer.Option("--full-fingerprint", help="Hash every byte of both models.")
    ] = False,
    force: options.Force = False,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> Command:
    """Extract the difference between EXTENDED and BASE as a LoRA adapter.

    Example: regraft extract-lora meta-llama/Meta-Llama-3-8B gradientai/Llama-3-8B-262k -o ctx-lora

    Example: regraft extract-lora base extended -o ctx-lora --rank 32 --calibrate book.txt
    """

    def show(record: AdapterRecord) -> Iterable[RenderableType]:
        from regraft.adapters.extract.evidence import summary

        yield label_table(f"Adapter in {out}", summary(record))

    return Command(
        lambda: regraft.extract_lora(
            base, extended, out, rank=rank, energy=energy, budget=budget, layout=layout,
            modules=modules, dtype=dtype, exact=exact, calibrate=calibrate,
            calibrate_length=calibrate_length, calibrate_tokens=calibrate_tokens, verify=verify,
            full_fingerprint=full_fingerprint, device=device, seed=seed, force=force,
            overwrite=overwrite, resume=resume, dry_run=dry_run,
        ),
        show,
    )  # fmt: skip
