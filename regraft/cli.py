"""The command line: `regraft` and its commands, in the order in which --help lists them.

The options of a command are in `regraft/commands/`, in the file of its name.
"""

from __future__ import annotations

from typing import Annotated

import typer

import regraft
from regraft.commands.apply import apply
from regraft.commands.data import data
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

app = typer.Typer(
    name="regraft",
    help="Extract long context from a Llama-3 model as a LoRA, and put it into its relatives.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)
_PANELS = {
    "Commands that write a folder": (
        extract_lora, apply, merge, train, evaluate, export, graft, push, demo,
    ),
    "Commands that only read": (plan, inspect, theta),
}  # fmt: skip
for _panel, _functions in _PANELS.items():
    for _function in _functions:
        app.command(_function.__name__.replace("_", "-"), rich_help_panel=_panel)(_function)
app.add_typer(data, name="data", rich_help_panel="Commands that write a folder")


def _print_version(requested: bool) -> None:
    if requested:
        write_stdout(f"{regraft.__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the `regraft` command."""
    run_app(app)


if __name__ == "__main__":
    main()
