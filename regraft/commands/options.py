"""Options that several commands share, and those that `shell_command` adds to every command."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Annotated, Any

import typer

from regraft.shell.command import Command, Options, run_command
from regraft.shell.stdout import write_stdout

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, no more.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check everything, print bytes, memory and time; write nothing."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace an earlier output, or discard an interrupted run and start again.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads of torch. \\[default: torch's choice]")
]
Seed = Annotated[
    int, typer.Option(help="Seed of the random parts: the same seed gives the same bytes.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show Python's traceback after an error.")]
Force = Annotated[
    bool, typer.Option("--force", help="Continue where the check of lineage refuses.")
]
Out = Annotated[str, typer.Option("--out", "-o", help="Folder to write.", show_default=False)]
Verify = Annotated[
    bool, typer.Option("--verify", help="Read every byte back from disk and compare hashes.")
]
ShardSize = Annotated[
    str | None,
    typer.Option(help="Largest shard, such as 5GB. \\[default: shards as in the model copied]"),
]


def schema_option(module: str) -> Any:
    """The option --schema, which prints the JSON schema that `schema()` of a recipe's module
    returns and exits. The module is imported only then."""

    def print_schema(requested: bool) -> None:
        if requested:
            write_stdout(json.dumps(import_module(module).schema(), indent=1) + "\n")
            raise typer.Exit

    return typer.Option(
        "--schema",
        callback=print_schema,
        is_eager=True,
        help="Print the JSON schema of a recipe and exit.",
    )


def shell_command(*, threads: bool = True) -> Callable[[Callable[..., Command]], Any]:
    """Decorator: make a command line's function of one that takes a command's own options and
    returns the command. It has --json, --quiet, --debug and, where `threads`, --threads, too, and
    runs the command."""
    added: dict[str, object] = {"as_json": Json, "quiet": Quiet, "debug": Debug}
    if threads:
        added = {"threads": Threads, **added}

    def decorate(function: Callable[..., Command]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True)

        @wraps(function)
        def run(**values: Any) -> None:
            shell = {name: values.pop(name) for name in added}
            options = Options(**shell, resumable="resume" in own.parameters)
            run_command(function(**values), options)

        shared = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(Options, name),
                annotation=annotation,
            )
            for name, annotation in added.items()
        ]
        parameters = [*own.parameters.values(), *shared]
        # typer reads both
        vars(run)["__signature__"] = own.replace(parameters=parameters, return_annotation=None)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate
