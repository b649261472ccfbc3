"""Reading a data recipe: YAML whose every mistake is named by line before work starts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import takewhile

from regraft.data.build.pipeline import ALL
from regraft.data.build.schema import Body
from regraft.data.build.step import Step
from regraft.data.build.steps.length import Length
from regraft.data.build.steps.mix import Mix
from regraft.document import Where
from regraft.errors import InputError, did_you_mean
from regraft.input_files import JsonObject
from regraft.recipe import BaseRecipe, Mistakes

# Books3, and subsets under other names that hold it: RedPajama's and SlimPajama's books, the Pile.
BOOKS3 = re.compile(r"books_?3|redpajama_?book|the_?pile_?books|bibliotik", re.IGNORECASE)


class Recipe(BaseRecipe[Body]):
    """A parsed data recipe."""

    schema = Body
    example = "sources: [...]"

    def canonical(self) -> str:
        """The recipe as one line of JSON, equal for recipes that request the same."""
        return json.dumps(self.body.model_dump(exclude={"executor"}), sort_keys=True)

    def steps(self) -> Iterable[tuple[Where, Step]]:
        """Every step with its place in the recipe."""
        for i, source in enumerate(self.body.sources):
            for j, entry in enumerate(source.steps):
                yield ("sources", i, "steps", j), entry.step
        for j, entry in enumerate(self.body.steps):
            yield ("steps", j), entry.step

    def check(self, mistakes: Mistakes) -> None:
        """Add every contradiction between parts of the recipe to `mistakes`."""
        names = [source.name for source in self.body.sources]
        for i, source in enumerate(self.body.sources):
            where = ("sources", i)
            if source.name == ALL:
                mistakes.add(
                    (*where, "name"),
                    f"'{ALL}' is what the steps of the recipe are listed under; give another name",
                )
            if source.name in names[:i]:
                mistakes.add((*where, "name"), f"'{source.name}' is listed twice")
            if not source.books3 and BOOKS3.search(f"{source.name} {source.location}"):
                mistakes.add(
                    where,
                    f"'{source.name}' is text of Books3, whose books are under copyright; take "
                    "another source, or say books3: true if you may use it",
                )
            for encoding in source.encodings:
                try:
                    "".encode(encoding)  # codecs.lookup has codecs of bytes, such as hex, too
                except (LookupError, UnicodeError):
                    mistakes.add((*where, "encodings"), f"'{encoding}' is not an encoding")
            for key, kinds in _OF_KINDS.items():
                given = key in self.document.value["sources"][i]
                if given and source.kind not in kinds:
                    mistakes.add((*where, key), f"'{key}' is of {' and '.join(kinds)} only")
        self._check_joins(mistakes)
        for mix, shares in self.body.mixes.items():
            for name in shares:
                if name not in names:
                    hint = did_you_mean(name, names)
                    mistakes.add(
                        ("mixes", mix, name),
                        f"'{name}' is not a source{hint}; the sources are {', '.join(names)}",
                    )
            if not shares:
                mistakes.add(("mixes", mix), f"the mix '{mix}' has no source")

    def _check_joins(self, mistakes: Mistakes) -> None:
        """Add every step that joins texts and would get conversations. `mix` may leave them out."""
        common = [(("steps", j), entry.step) for j, entry in enumerate(self.body.steps)]
        common = list(takewhile(lambda item: not isinstance(item[1], Mix), common))
        for i, source in enumerate(self.body.sources):
            own = [(("sources", i, "steps", j), entry.step) for j, entry in enumerate(source.steps)]
            for where, step in [*own, *common] if source.chat else []:
                if isinstance(step, Length) and step.join is not None:
                    mistakes.add(
                        (*where, step.name, "join"),
                        f"'{source.name}' has conversations, which `join` does not join; use the "
                        "step chat for them, and give `join` to the other sources",
                    )

    def check_steps(self, *, servers: bool) -> None:
        """Raise InputError, with its line, where a step lacks a file, a model or a package, and,
        with `servers`, where a server does not answer."""
        for where, step in self.steps():
            try:
                step.check()
                if servers:
                    step.check_server()
            except InputError as error:
                raise self.error(where, f"{step.name}: {error}") from None


_OF_KINDS = {
    "chat": ("jsonl", "parquet", "hub"),
    "id_field": ("jsonl", "parquet", "hub"),
    "format": ("jsonl", "parquet", "hub"),
    "field": ("jsonl", "parquet", "hub"),
    "split": ("hub",),
    "subset": ("hub",),
    "limit": ("jsonl", "parquet", "hub"),
    "separator": ("text",),
    "order": ("code",),
    "encodings": ("text", "jsonl", "code", "html"),
}


def schema() -> JsonObject:
    """JSON schema (draft 2020-12) of a recipe, for editors."""
    result = Body.model_json_schema()
    result["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    result["title"] = "regraft data recipe"
    return result
