"""A YAML recipe as a pydantic model. All its mistakes are named in one error, each with its line.

class Recipe(BaseRecipe[Body]):
    schema = Body
    example = "merge_method: linear"

    def check(self, mistakes: Mistakes) -> None: ...   # what the schema alone cannot say

recipe = Recipe.read("recipe.yaml")
recipe.body                                            # a Body
raise recipe.error(("stages", 0), "...")               # a mistake that shows only later
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from regraft.document import Document, RecipeValues, Where
from regraft.errors import InputError, closest_name, did_you_mean, short_repr

_LISTED = 10  # mistakes in one message

Body = TypeVar("Body", bound=BaseModel)


class RecipeError(InputError):
    """The mistakes of a recipe. entries: (line, what is wrong) of each."""

    def __init__(self, message: str, entries: list[tuple[int, str]]) -> None:
        super().__init__(message)
        self.entries = entries


class Mistakes:
    """Collects the mistakes of a document and raises them together."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._entries: list[tuple[int, str]] = []

    def add(self, where: Where, message: str) -> None:
        """Note a mistake: the location of the value and what is wrong with it."""
        entry = (self._document.line(where), message.rstrip("."))
        if entry not in self._entries:
            self._entries.append(entry)

    def include(self, error: RecipeError) -> None:
        """Note the mistakes of a part of the document that is a recipe of its own."""
        self._entries += [entry for entry in error.entries if entry not in self._entries]

    def raise_if_any(self) -> None:
        """Raise RecipeError with all mistakes, in the order of their lines."""
        entries = sorted(self._entries, key=lambda entry: entry[0])
        if not entries:
            return
        name = self._document.name
        if len(entries) == 1:
            raise RecipeError(f"{name}, line {entries[0][0]}: {entries[0][1]}.", entries)
        listed = "; ".join(f"line {line}: {text}" for line, text in entries[:_LISTED])
        rest = f"; and {len(entries) - _LISTED} more" if len(entries) > _LISTED else ""
        raise RecipeError(f"{name} has {len(entries)} mistakes: {listed}{rest}.", entries)


class BaseRecipe(Generic[Body]):
    """A parsed recipe. `body`: its keys, validated; `document`: the YAML it came from."""

    schema: ClassVar[type[BaseModel]]
    example: ClassVar[str]  # one line of such a recipe, for messages

    def __init__(self, document: Document) -> None:
        self.document = document
        if not isinstance(document.value, dict):
            raise document.error((), f"a recipe is a mapping such as '{self.example}'.")
        mistakes = Mistakes(document)
        self.check_stated(document.value, mistakes)
        try:
            self.body: Body = self.schema.model_validate(document.value)  # type: ignore[assignment]
        except ValidationError as error:
            for where, message in _explanations(error, document.value, self.schema):
                mistakes.add(where, message)
        else:
            self.check(mistakes)
        mistakes.raise_if_any()

    @classmethod
    def read(cls, path: str | Path) -> typing.Self:
        """Read and check a file. Raises InputError: file, lines, what is wrong, what to do."""
        return cls(Document.read(path))

    def check_stated(self, value: RecipeValues, mistakes: Mistakes) -> None:
        """Add mistakes that show in the YAML's values whether or not the schema accepts them."""

    def check(self, mistakes: Mistakes) -> None:
        """Add what is wrong beyond the schema; `body` is valid by it."""

    def error(self, where: Where, message: str) -> InputError:
        """The error to raise for one mistake, with the file and the line of `where`."""
        return self.document.error(where, message)


@dataclass(frozen=True)
class _Located:
    """One of pydantic's errors in the YAML. `blocks`: the models that may hold the value (for an
    unknown or missing key: that may hold the key); `branch`: where its union begins, and the
    branch of the union it belongs to."""

    where: Where
    blocks: list[type[BaseModel]]
    branch: tuple[Where, tuple[str, ...]] | None
    details: ErrorDetails

    @property
    def key(self) -> str:
        return str(self.details["loc"][-1])

    @property
    def keys(self) -> list[str]:
        """The keys that the block knows, as YAML spells them."""
        fields = {
            name: field for block in self.blocks for name, field in block.model_fields.items()
        }
        return [field.alias or name for name, field in fields.items()]


def _explanations(
    error: ValidationError, value: Any, model: type[BaseModel]
) -> Iterator[tuple[Where, str]]:
    """Where each mistake is and what it is. One mistake in a union is one mistake, not one for each
    of its branches; a misspelt key is not missing as well."""
    located = [_locate(item, value, model) for item in error.errors(include_url=False)]
    misspelt = {
        (one.where[:-1], closest_name(one.key, one.keys))
        for one in located
        if one.details["type"] == "extra_forbidden"
    }
    unions: dict[Where, list[_Located]] = {}
    for one in located:
        if one.details["type"] == "missing" and (one.where, one.key) in misspelt:
            continue
        if one.branch is None:
            yield one.where, _message([one])
        else:
            unions.setdefault(one.branch[0], []).append(one)
    for branches in unions.values():
        depth = max(len(one.where) for one in branches)
        deepest = [one for one in branches if len(one.where) == depth]
        if depth > len(branches[0].branch[0] if branches[0].branch else ()):
            for one in deepest:  # the branch that the value was meant for
                yield one.where, _message([one])
        else:  # a branch that fits but for its own check is the one that was meant
            meant = [one for one in deepest if one.details["type"] == "value_error"]
            yield deepest[0].where, _message(meant or deepest)


def _message(alternatives: list[_Located]) -> str:
    """What is wrong with a value, `alternatives` being what each branch of a union says."""
    one = alternatives[0]
    details, key = one.details, ".".join(str(part) for part in one.where) or "the recipe"
    kind, text = details["type"], details["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        hint = did_you_mean(one.key, one.keys) or f"; the keys here are {', '.join(one.keys)}"
        return f"'{one.key}' is not a key here{hint}"
    if kind == "missing":
        return f"'{one.key}' is missing"
    if kind == "recursion_loop":
        return f"{key} refers to itself"
    if kind == "value_error":
        return f"{key}: {text}"
    prefix = "Input should be "
    if not text.startswith(prefix):
        return f"{key}: {text[:1].lower()}{text[1:]}, not {short_repr(details['input'])}"
    texts = [other.details["msg"] for other in alternatives]
    allowed = dict.fromkeys(t.removeprefix(prefix) for t in texts if t.startswith(prefix))
    return f"{key} should be {', or '.join(allowed)}, not {short_repr(details['input'])}"


def _locate(item: ErrorDetails, value: Any, model: type[BaseModel]) -> _Located:
    """Pydantic's location in the YAML: it adds the branches of unions and missing keys."""
    loc = item["loc"]
    about_key = item["type"] in ("extra_forbidden", "missing")
    where: Where = ()
    blocks = [model]
    branch: tuple[Where, tuple[str, ...]] | None = None
    for i, part in enumerate(loc):
        if not (about_key and i == len(loc) - 1):
            blocks = _blocks_of(blocks, part)
        keys: Any = value if isinstance(value, dict) else ()
        keys = range(len(value)) if isinstance(value, list) else keys
        if part in keys:
            where, value = (*where, part), value[part]
        elif isinstance(part, str) and not (about_key and i == len(loc) - 1):
            branch = branch or (where, (part,))
    return _Located(where, blocks, branch, item)


def _blocks_of(blocks: list[type[BaseModel]], part: int | str) -> list[type[BaseModel]]:
    """The models that a part of pydantic's location leads to: a field's, or a union's branch."""
    for block in blocks:
        for name, field in block.model_fields.items():
            if part in (name, field.alias):
                return list(models_in(field.annotation))
    return [block for block in blocks if block.__name__ == part] or blocks


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation such as `list[Stage]` or `str | ToyModel`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for part in typing.get_args(annotation):
        yield from models_in(part)
