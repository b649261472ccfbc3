"""The command line: `regraft` and its commands, in the order in which --help lists them.

The options of a command are in `regraft/commands/`, in the file of its name.
"""

from __future__ import annotations

from typing import Annotated

import typer

import regraft
from regraft.commands.apply import apply
from regraft.commands.demo import demo
from regraft.commands.evaluate import evaluate
from regraft.commands.export import export
from regraft.commands.extract_lora import extract_lora
from regraft.commands.graft import graft
from regraft.commands.inspect import inspect
from regraft.commands.merge import merge
from regraft.commands.plan import plan
from regraft.commands.push import push
from regraft.commands.theta import theta
from regraft.commands.train import train
from regraft.shell.process import run_app
from regraft.shell.stdout import write_stdout

_WRITE = "Commands that write a folder"
_READ = "Commands that only read"

app = typer.Typer(
    name="regraft",
    help="Extract long context from a Llama-3 model as a LoRA, and put it into its relatives.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)
app.command("extract-lora", rich_help_panel=_WRITE)(extract_lora)
app.command("apply", rich_help_panel=_WRITE)(apply)
app.command("merge", rich_help_panel=_WRITE)(merge)
app.command("train", rich_help_panel=_WRITE)(train)
app.command("evaluate", rich_help_panel=_WRITE)(evaluate)
app.command("export", rich_help_panel=_WRITE)(export)
app.command("graft", rich_help_panel=_WRITE)(graft)
app.command("push", rich_help_panel=_WRITE)(push)
app.command("plan", rich_help_panel=_READ)(plan)
app.command("inspect", rich_help_panel=_READ)(inspect)
app.command("theta", rich_help_panel=_READ)(theta)
app.command("demo", rich_help_panel=_WRITE)(demo)


def _print_version(requested: bool) -> None:
    if requested:
        write_stdout(f"{regraft.__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the `regraft` command."""
    run_app(app)


if __name__ == "__main__":
    main()
