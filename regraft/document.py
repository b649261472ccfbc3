"""A YAML file as plain values with their lines, safe for files from elsewhere.

PyYAML's composer gives nodes with positions. They are converted to values here, so that tags,
cycles, repeated keys and aliases that multiply are refused with their line. Limits on bytes, nodes
and depth are far above any real recipe.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from regraft.errors import InputError
from regraft.input_files import read_bytes

RecipeValues = dict[str, Any]
"""A mapping of a YAML file as it stands there; the schema of a recipe checks it."""

Where = tuple[str | int, ...]
"""Keys and indices from the top of the file to a value."""

_MAX_BYTES = 1_000_000
_MAX_NODES = 100_000
_MAX_DEPTH = 64
_MAX_INTEGER = 2**64
_CORE = "tag:yaml.org,2002:"
_SCALARS = ("str", "int", "float", "bool", "null", "timestamp")


class _NestedTooDeep(yaml.MarkedYAMLError):
    pass


class _Loader(yaml.SafeLoader):
    """Stops at too many open brackets, since PyYAML's scanner visits all of them for every token:
    20,000 would take a second."""

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level > _MAX_DEPTH:
            raise _NestedTooDeep(problem_mark=self.get_mark())
        super().fetch_flow_collection_start(token)


class Document:
    """One YAML document. `value`: dicts with string keys, lists, strings, numbers, booleans and
    None; `line(where)`: the line of each, from 1."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self._lines: dict[Where, int] = {(): 1}
        self._count = 0
        try:
            node = yaml.compose(text, Loader=_Loader)
            if node is None:
                raise InputError(f"{name} is empty; `--schema` prints the keys of a recipe.")
            self.value = self._value(node, (), ())
        except RecursionError:
            raise InputError(f"{name} is nested too deeply for a recipe; write it flat.") from None
        except yaml.MarkedYAMLError as error:
            raise _syntax_error(name, error) from None
        except yaml.YAMLError as error:
            what = " ".join(str(error).split())
            raise InputError(f"{name} is not valid YAML: {what}.") from None

    @classmethod
    def read(cls, path: str | Path) -> Document:
        """Read a file. Raises InputError with file, line and what is wrong."""
        try:
            if Path(path).stat().st_size > _MAX_BYTES:
                raise InputError(f"{path} is larger than a recipe can be (1 MB); is it a model?")
            data = read_bytes(path)
        except OSError as error:
            raise InputError(f"The recipe {path} cannot be read: {error.strerror}.") from None
        try:
            return cls(str(path), data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise InputError(f"{path}, line {line} is not UTF-8 text; save it as such.") from None

    def part(self, *where: str | int, **defaults: Any) -> Document:
        """The mapping at `where` as a document of its own, with the lines of this file.

        defaults: values for keys that the mapping does not have.
        """
        part = object.__new__(Document)
        part.name, part.text, part._count = self.name, self.text, self._count
        value = self.value
        for key in where:
            value = value[key]
        part.value = {**defaults, **value}
        depth = len(where)
        part._lines = {w[depth:]: n for w, n in self._lines.items() if w[:depth] == where}
        return part

    def replaced(self, **values: Any) -> Document:
        """The document with other values for these keys, at the lines of the old ones."""
        other = self.part()
        other.value.update(values)
        return other

    def line(self, where: Where) -> int:
        """The line of the value, or of the innermost stated value around it."""
        while where not in self._lines:
            where = where[:-1]
        return self._lines[where]

    def error(self, where: Where, message: str) -> InputError:
        """The error to raise: file, line, message."""
        return InputError(f"{self.name}, line {self.line(where)}: {message}")

    def _value(self, node: yaml.Node, where: Where, parents: tuple[yaml.Node, ...]) -> Any:
        self._lines.setdefault(where, node.start_mark.line + 1)
        self._count += 1
        if self._count > _MAX_NODES:
            raise self.error(where, "its aliases multiply beyond any recipe; write the values out.")
        if any(node is parent for parent in parents):
            raise self.error(where, "an alias stands inside its own anchor; write the value out.")
        if len(parents) > _MAX_DEPTH:
            raise self.error(where, f"more than {_MAX_DEPTH} values are nested; write it flat.")
        kind = node.tag.removeprefix(_CORE)
        if isinstance(node, yaml.ScalarNode) and kind in _SCALARS and node.tag != kind:
            return self._scalar(node, kind, where)
        parents = (*parents, node)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self._value(item, (*where, i), parents) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, where, parents)
        tag = node.tag.replace(_CORE, "!!")
        raise self.error(where, f"the tag {tag} is not allowed in a recipe.")

    def _scalar(self, node: yaml.ScalarNode, kind: str, where: Where) -> Any:
        if kind in ("str", "timestamp"):
            return self._text(node.value, where)
        try:
            value = yaml.constructor.SafeConstructor().construct_object(node)
        except (ValueError, KeyError, IndexError, OverflowError, yaml.YAMLError):
            raise self.error(where, f"{node.value[:40]!r} cannot be read as {kind}.") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(where, f"{node.value} is not a finite number; give one.")
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise self.error(where, f"{node.value[:40]} is too large; no setting needs 2^64.")
        return value

    def _text(self, text: str, where: Where) -> str:
        """The string, if it can be written to a file and used as a path."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self.error(where, f"{text[:40]!r} holds half a surrogate pair.") from None
        if "\0" in text:
            raise self.error(where, f"{text[:40]!r} holds a NUL character.")
        return text

    def _mapping(
        self, node: yaml.MappingNode, where: Where, parents: tuple[yaml.Node, ...]
    ) -> RecipeValues:
        merged: RecipeValues = {}
        own: RecipeValues = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(where, "a key must be a word, not a list or a mapping.")
            if key.tag == _CORE + "merge":
                several = isinstance(item, yaml.SequenceNode)
                for part in item.value if several else [item]:
                    values = self._value(part, where, parents)
                    if not isinstance(values, dict):
                        raise self.error(where, "'<<' takes a mapping or a list of mappings.")
                    merged = {**values, **merged}
        for key, item in node.value:
            if key.tag == _CORE + "merge":
                continue
            name = self._text(key.value, where)
            inner = (*where, name)
            self._lines[inner] = key.start_mark.line + 1
            if name in own:
                raise self.error(inner, f"'{name}' is given twice; delete one.")
            own[name] = self._value(item, inner, parents)
        return {**merged, **own}


def _syntax_error(name: str, error: yaml.MarkedYAMLError) -> InputError:
    mark = error.problem_mark or error.context_mark
    line = f", line {mark.line + 1}" if mark else ""
    if error.context == "expected a single document in the stream":
        return InputError(
            f"{name}{line}: a second YAML document begins here ('---'), and a recipe is one; "
            "regraft does not run mergekit-multimerge files: save each document as a recipe, run "
            "them in order, and name the folder of an earlier result as a model of a later one."
        )
    if isinstance(error, _NestedTooDeep):
        return InputError(f"{name}{line}: more than {_MAX_DEPTH} values are nested; write it flat.")
    what = (error.problem or error.context or "cannot be parsed").rstrip(".")
    return InputError(f"{name}{line} is not valid YAML: {what}.")
