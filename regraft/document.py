"""A YAML file as plain values, each of which knows its line; nothing in it can run or explode.

PyYAML's composer gives nodes with positions; they are turned into values here so that tags, cycles,
repeated keys and aliases that multiply are refused by line. A recipe is small: limits on bytes,
nodes and depth are far above any real one.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from regraft.errors import InputError

Where = tuple[str | int, ...]  # keys and indices from the top to a value

_MAX_BYTES = 1_000_000
_MAX_NODES = 100_000
_CORE = "tag:yaml.org,2002:"
_SCALARS = ("str", "int", "float", "bool", "null", "timestamp")


class Document:
    """`value`: dicts, lists, strings, numbers, booleans and None; `line` of each, from 1."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self._lines: dict[Where, int] = {(): 1}
        self._count = 0
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            if node is None:
                raise InputError(f"{name} is empty; `--schema` prints the keys of a recipe.")
            self.value = self._value(node, (), ())
        except RecursionError:
            raise InputError(f"{name} is nested too deeply for a recipe; write it flat.") from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f", line {mark.line + 1}" if mark else ""
            what = (error.problem or error.context or "cannot be parsed").rstrip(".")
            raise InputError(f"{name}{place} is not valid YAML: {what}.") from None
        except yaml.YAMLError as error:
            what = " ".join(str(error).split())
            raise InputError(f"{name} is not valid YAML: {what}.") from None

    @classmethod
    def read(cls, path: str | Path) -> Document:
        """Read a file. Raises InputError with file, line and what is wrong."""
        try:
            if Path(path).stat().st_size > _MAX_BYTES:
                raise InputError(f"{path} is larger than a recipe can be (1 MB); is it a model?")
            data = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"The recipe {path} cannot be read: {error.strerror}.") from None
        try:
            return cls(str(path), data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise InputError(f"{path}, line {line} is not UTF-8 text; save it as such.") from None

    def part(self, key: str, **given: Any) -> Document:
        """The mapping under a top key as a document of its own, its lines those of this file;
        `given` are values that it need not state."""
        other = object.__new__(Document)
        other.name, other.text, other._count = self.name, self.text, self._count
        other.value = {**given, **self.value[key]}
        other._lines = {w[1:]: n for w, n in self._lines.items() if w[:1] == (key,)}
        return other

    def line(self, where: Where) -> int:
        """The line of the value, or of the nearest value around it."""
        while where not in self._lines:
            where = where[:-1]
        return self._lines[where]

    def error(self, where: Where, message: str) -> InputError:
        """The error to raise: file, line, message."""
        return InputError(f"{self.name}, line {self.line(where)}: {message}")

    def _value(self, node: yaml.Node, where: Where, around: tuple[yaml.Node, ...]) -> Any:
        self._lines.setdefault(where, node.start_mark.line + 1)
        self._count += 1
        if self._count > _MAX_NODES:
            raise self.error(where, "its aliases multiply beyond any recipe; write the values out.")
        if any(node is other for other in around):
            raise self.error(where, "an alias stands inside its own anchor; write the value out.")
        kind = node.tag.removeprefix(_CORE)
        if isinstance(node, yaml.ScalarNode) and kind in _SCALARS and node.tag != kind:
            return self._scalar(node, kind, where)
        around = (*around, node)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self._value(item, (*where, i), around) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, where, around)
        raise self.error(
            where, f"the tag {node.tag.replace(_CORE, '!!')} has no place in a recipe."
        )

    def _scalar(self, node: yaml.ScalarNode, kind: str, where: Where) -> Any:
        if kind in ("str", "timestamp"):
            return node.value
        try:
            value = yaml.constructor.SafeConstructor().construct_object(node)
        except (ValueError, KeyError, yaml.YAMLError):
            raise self.error(where, f"'{node.value[:40]}' cannot be read as {kind}.") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(where, f"{node.value} is not a finite number; give one.")
        return value

    def _mapping(
        self, node: yaml.MappingNode, where: Where, around: tuple[yaml.Node, ...]
    ) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(where, "a key must be a word, not a list or a mapping.")
            if key.tag == _CORE + "merge":
                several = isinstance(item, yaml.SequenceNode)
                for part in item.value if several else [item]:
                    found = self._value(part, where, around)
                    if not isinstance(found, dict):
                        raise self.error(where, "'<<' takes a mapping or a list of mappings.")
                    merged = {**found, **merged}
        for key, item in node.value:
            if key.tag == _CORE + "merge":
                continue
            at = (*where, key.value)
            self._lines[at] = key.start_mark.line + 1
            if key.value in own:
                raise self.error(at, f"'{key.value}' is given twice; keep one.")
            own[key.value] = self._value(item, at, around)
        return {**merged, **own}


def near(word: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the nearest known word, or ''."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
