"""`regraft theta`: the RoPE theta for a longer context."""

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

    from regraft.theta import ThetaChoice
    from regraft.train.theta_probe import ThetaProbe


@options.shell_command()
def theta(
    trained: Annotated[
        str,
        typer.Argument(
            help="Context length of the model, such as 8k, or the model itself: a folder or "
            "org/name\\[@revision]. Only its config.json is read."
        ),
    ],
    target: Annotated[str, typer.Argument(help="Context length to reach, such as 1M.")],
    base: Annotated[
        str | None,
        typer.Option(help="RoPE theta of the model, or the model. \\[default: MODEL's, or 500000]"),
    ] = None,
    law: Annotated[str, typer.Option(help="The law to print: scaling, ntk or bound.")] = "scaling",
    head_dim: Annotated[
        int | None,
        typer.Option(
            help="Size of an attention head, for the NTK law. \\[default: MODEL's, or 128]"
        ),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(help="A training recipe in YAML: train shortly with several thetas instead."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps per theta, with --probe.")] = 20,
    search: Annotated[
        int,
        typer.Option(
            help="With --probe: also try longrope, with the best of this many lists of factors.",
            min=0,
        ),
    ] = 0,
    device: options.Device = "auto",
) -> Command:
    """Print the RoPE theta for a longer context; all laws are listed on stderr.

    Example: regraft theta 8k 262144 --base 500000    prints 283461213

    Of a model: regraft theta NousResearch/Hermes-2-Pro-Llama-3-8B 64k
    """

    def show_laws(report: ThetaChoice) -> Iterable[RenderableType]:
        from regraft import progress
        from regraft.rope.laws import describe_laws

        for line in describe_laws(report):
            progress.note(line)
        yield str(report.theta)

    def show_probe(report: ThetaProbe) -> Iterable[RenderableType]:
        from regraft.train.theta_probe import table

        yield label_table(f"Theta for {target}", table(report))

    if probe is not None:
        return Command(
            lambda: regraft.probe_theta(
                probe, trained, target, base, steps=steps, search=search, device=device
            ),
            show_probe,
        )
    return Command(
        lambda: regraft.theta_for(trained, target, base=base, law=law, head_dim=head_dim),
        show_laws,
    )
