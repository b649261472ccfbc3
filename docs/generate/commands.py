"""The page on the command line, from the commands' own options and help texts."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from generate.text import cell, code, described, docstring, rows
from regraft import cli
from regraft.markdown import Markdown, fenced

_EXAMPLE = re.compile(r"([A-Z][^:\n]*): ((?:regraft|torchrun) .*?)(?:\s{2,}prints (\S+))?$")


@cache
def group() -> TyperGroup:
    """The command `regraft`."""
    result = typer.main.get_command(cli.app)
    assert isinstance(result, TyperGroup)
    return result


@cache
def every_command() -> dict[str, TyperCommand]:
    """Every command by its words, such as 'merge' and 'data build'."""
    result = {}
    for name, command in group().commands.items():
        inner = command.commands if isinstance(command, TyperGroup) else {"": command}
        for last, one in inner.items():
            assert isinstance(one, TyperCommand)
            result[f"{name} {last}".strip()] = one
    return result


def help_of(command: str, parameter: str) -> str | None:
    """The help text of an argument or option, None where the command has none of that name."""
    for one in every_command()[command].params:
        if one.name == parameter:
            return described(_help(one), f"regraft {command} {parameter}")
    return None


def page() -> str:
    """Every command with its arguments, options, defaults and examples."""
    parts = [
        "# Command line",
        cell(described(group().help, "regraft")),
        "[What all commands share](shared.md): output folders, `--resume`, exit codes.",
    ]
    for name, command in every_command().items():
        parts += _command(name, command)
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: TyperCommand) -> Iterator[str]:
    yield f"## regraft {name}"
    arguments = [one for one in command.params if isinstance(one, TyperArgument)]
    words = [str(one.name).upper() + ("..." if one.nargs == -1 else "") for one in arguments]
    yield fenced(f"regraft {name} {' '.join([*words, '[OPTIONS]'])}", "text")
    yield from _help_blocks(name, docstring(command.callback, f"regraft {name}"))
    hints = typing.get_type_hints(command.callback)
    body = []
    for one in command.params:
        if one.name == "help":
            continue
        text = described(_help(one), f"regraft {name} {one.name}")
        body.append(
            (
                _names(one),
                _type(one, hints[str(one.name)]),
                _default(one, text),
                cell(_without_default(text)),
            )
        )
    yield rows(("option", "type", "default", "meaning"), body)


def _help_blocks(name: str, text: str) -> Iterator[str]:
    """The help text: its examples and indented recipes as code."""
    if not re.search(r"^Example: ", text, re.M):
        raise ValueError(f"regraft {name} has no example")
    for block in re.sub(r"\\\n\s*", "", text).split("\n\n"):
        if block.startswith(" "):
            yield fenced(re.sub(r"^ {4}", "", block, flags=re.M), "yaml")
        elif example := _EXAMPLE.match(block):
            printed = f"    # prints {example[3]}" if example[3] else ""
            yield f"{example[1]}:"
            yield fenced(f"{example[2]}{printed}", "bash")
        else:
            yield cell(" ".join(block.split()))


def _help(parameter: Any) -> str:
    return (parameter.help or "").replace("\\[", "[")


def _names(parameter: Any) -> Markdown:
    if isinstance(parameter, TyperArgument):
        return code(str(parameter.name).upper())
    return Markdown(", ".join(map(code, [*parameter.opts, *parameter.secondary_opts])))


def _type(parameter: Any, hint: Any) -> Markdown:
    if getattr(parameter, "is_flag", False):
        return Markdown("flag")
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (one for one in typing.get_args(hint) if one is not types.NoneType)
    several = typing.get_origin(hint) is list
    if several:
        (hint,) = typing.get_args(hint)
    if issubclass(hint, Enum):
        return Markdown(", ".join(code(str(one.value)) for one in hint))
    name = {str: "text", int: "integer", float: "number"}[hint]
    return Markdown(f"{name}, may be repeated" if several else name)


def _default(parameter: Any, text: str) -> Markdown:
    if stated := re.search(r"\[default: ([^\]]+)\]", text):
        return cell(stated[1])
    if parameter.required:
        return Markdown("required")
    value = parameter.default
    if value is None:
        return Markdown("")
    if isinstance(value, bool):
        return Markdown("on" if value else "off")
    return code(str(getattr(value, "value", value)))


def _without_default(text: str) -> str:
    return re.sub(r"\s*\[default: [^\]]+\]", "", text)
