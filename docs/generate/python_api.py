"""The page on the Python API: `regraft.__all__` with signatures, arguments and docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import regraft
from generate.commands import help_of
from generate.text import cell, code, described, docstring, paragraphs, rows
from regraft.markdown import Markdown, fenced

# The command that has the arguments of a function, where the docstring leaves one to it.
COMMANDS = {
    "apply_lora": "apply", "build_data": "data build",
    "evaluate_models": "evaluate", "export_gguf": "export",
    "extract_lora": "extract-lora", "graft_model": "graft", "inspect_model": "inspect",
    "merge_models": "merge", "plan_training": "plan", "probe_theta": "theta",
    "push_output": "push", "run_demo": "demo", "theta_for": "theta", "train_model": "train",
}  # fmt: skip


def page() -> str:
    """Every exported function and class."""
    parts = [
        "# Python API",
        paragraphs(docstring(regraft, "regraft"), "python"),
        "A Python caller sets the [environment](shared.md#environment) itself, before torch is "
        "imported, and gets no progress bars unless it asks:",
        fenced("from regraft import progress\n\nprogress.configure(quiet=False)", "python"),
    ]
    names = [name for name in regraft.__all__ if not name.startswith("__")]
    targets = [(name, getattr(regraft, name)) for name in names]
    for name, target in targets:
        if inspect.isfunction(target):
            parts += _function(name, target)
    for name, target in targets:
        if inspect.isclass(target):
            parts += _class(name, target)
    return "\n\n".join(parts) + "\n"


def _function(name: str, function: Any) -> Iterator[str]:
    yield f"## {name}"
    signature = inspect.signature(function)
    call = f"regraft.{name}({_arguments(signature)})"
    yield fenced(f"{textwrap.fill(call, 80, subsequent_indent='    ')} "
                 f"-> {signature.return_annotation}", "python")  # fmt: skip
    text, meanings = _split(docstring(function, name), set(signature.parameters))
    yield paragraphs(text)
    body = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        own = meanings.get(parameter.name) or _from_command(name, parameter.name)
        kind = code(str(parameter.annotation))
        default = Markdown("required") if parameter.default is parameter.empty else code(
            repr(parameter.default))  # fmt: skip
        meaning = cell(described(own, f"{name}({parameter.name})"))
        body.append((code(parameter.name), kind, default, meaning))
    yield rows(("argument", "type", "default", "meaning"), body)


def _from_command(function: str, parameter: str) -> str | None:
    text = help_of(COMMANDS[function], parameter)
    return re.sub(r"\s*\[default: [^\]]+\]", "", text) if text else None


def _arguments(signature: inspect.Signature) -> str:
    """The parameters by name, those with a default as `name=..`."""
    words = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            words.append(f"**{parameter.name}")
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        required = parameter.default is parameter.empty
        words.append(parameter.name if required else f"{parameter.name}={parameter.default!r}")
    return ", ".join(words)


def _split(text: str, parameters: set[str]) -> tuple[str, dict[str, str]]:
    """A docstring without its sentences on arguments ("name, name: ..."), and these by name."""
    meanings: dict[str, str] = {}
    blocks = []
    for block in text.split("\n\n"):
        line = " ".join(block.split())
        starts = [
            match
            for match in re.finditer(r"(?:^|(?<=[.;] ))(\w+(?:, \w+)*): ", line)
            if set(match[1].split(", ")) <= parameters
        ]
        ends = [match.start() for match in starts[1:]]
        head = line[: starts[0].start()] if starts else line
        for match, end in zip(starts, [*ends, len(line)], strict=False):
            meaning = line[match.end() : end]
            meaning, stop, returns = meaning.partition(" Raises ")
            head += f"{stop.lstrip()}{returns}"
            for name in match[1].split(", "):
                meanings[name] = meaning[:1].upper() + meaning[1:].strip()
        if not starts:
            blocks.append(block)
        elif head.strip():
            blocks.append(head.strip())
    return "\n\n".join(blocks), meanings


def _class(name: str, kind: type) -> Iterator[str]:
    yield f"## {name}"
    yield fenced(f"class regraft.{name}({kind.__bases__[0].__name__})", "python")
    yield paragraphs(docstring(kind, name))
    body = []
    for member, value in vars(kind).items():
        if member.startswith("_"):
            continue
        function = getattr(value, "__func__", value)
        is_property = isinstance(value, property) or type(value).__name__ == "cached_property"
        if not is_property and not inspect.isfunction(function):
            continue
        text = docstring(value, f"{name}.{member}").split("\n\n")[0]
        usage = member if is_property else f"{member}({_members(function)})"
        body.append((code(usage), cell(" ".join(text.split()))))
    if body:
        yield rows(("member", "meaning"), body)


def _members(function: Any) -> str:
    signature = inspect.signature(function)
    kept = [one for name, one in signature.parameters.items() if name not in ("self", "cls")]
    return _arguments(signature.replace(parameters=kept))
