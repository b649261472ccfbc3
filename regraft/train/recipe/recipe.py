"""Reading a training recipe: YAML whose every mistake is named by line before work starts."""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from regraft.document import Document, Where, near, shown
from regraft.errors import InputError
from regraft.train.recipe.schema import Body, Stage
from regraft.units import format_tokens


class Recipe:
    """A parsed recipe. `body`: its keys; `error`: InputError with a line of the file."""

    def __init__(self, document: Document) -> None:
        self.document = document
        if not isinstance(document.value, dict):
            raise self.error((), "a recipe is a mapping such as 'model: org/name'.")
        try:
            self.body = Body.model_validate(document.value)
        except ValidationError as error:
            raise self._explained(error) from None
        self._check()

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read and check a file. Raises InputError: file, line, what is wrong, what to do."""
        return cls(Document.read(path))

    def error(self, where: Where, message: str) -> InputError:
        """The error to raise, with the file and the line of `where`."""
        return self.document.error(where, message)

    def window(self, stage: Stage) -> int:
        """Tokens really trained in a row of the stage: fewer than its length where rows skip."""
        positions = self.body.positions
        if positions.kind == "contiguous" or positions.window is None:
            return stage.length
        return min(positions.window, stage.length)

    def steps(self, stage: Stage) -> int:
        """Optimizer steps of a stage."""
        if stage.steps is not None:
            return stage.steps
        assert stage.tokens is not None
        return -(-stage.tokens // (stage.batch * self.window(stage)))

    def mix(self, stage: Stage) -> dict[str, float]:
        """Share of rows by source, summing to 1."""
        names = [source.name for source in self.body.data.sources]
        given = stage.mix or dict.fromkeys(names, 1.0)
        total = sum(given.values())
        return {name: given[name] / total for name in names if name in given}

    def canonical(self) -> str:
        """One line that two recipes share when they ask for the same."""
        return json.dumps(self.body.model_dump(), sort_keys=True)

    def _check(self) -> None:
        body = self.body
        names = [source.name for source in body.data.sources]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise self.error(("data", "sources", i, "name"), f"'{name}' is there twice.")
        for i, stage in enumerate(body.stages):
            for name in stage.mix or ():
                if name not in names:
                    raise self.error(
                        ("stages", i, "mix", name),
                        f"'{name}' is no source{near(name, names)}; known are {', '.join(names)}.",
                    )
        filler = body.watch and body.watch.needle and body.watch.needle.filler
        if filler and filler not in names:
            raise self.error(
                ("watch", "needle", "filler"),
                f"'{filler}' is no source{near(filler, names)}; known are {', '.join(names)}.",
            )
        positions = body.positions
        if positions.kind != "contiguous":
            if positions.window is None:
                raise self.error(
                    ("positions",), f"{positions.kind} needs a window: the tokens of a row."
                )
            if positions.chunks[0] > positions.chunks[1]:
                raise self.error(("positions", "chunks"), "chunks are [fewest, most].")
            if positions.window < 2 * positions.least:
                raise self.error(
                    ("positions", "window"),
                    f"a window of {positions.window} tokens has no room for two chunks of "
                    f"{positions.least}; give a longer window or a smaller 'least'.",
                )
            for i, source in enumerate(body.data.sources):
                if source.rows == "joined" and not body.data.masks:
                    raise self.error(
                        ("data", "sources", i, "rows"),
                        "joined rows without masks are one document; give masks: true or rows: "
                        "whole.",
                    )
        elif positions.window is not None:
            raise self.error(
                ("positions", "window"), "contiguous rows are as long as their stage's length."
            )
        if body.method == "lora" and body.freeze:
            raise self.error(("freeze",), "lora freezes the model by itself; leave freeze out.")
        for block in ("lora", "recover"):
            if body.method != block and block in self.document.value:
                raise self.error(
                    (block,),
                    f"method is {body.method}, which has no {block}; say method: {block}.",
                )
        if body.method != "lora" and body.export.kind == "adapter":
            raise self.error(
                ("export", "kind"),
                "a full fine-tune is a model; export it and run `regraft extract-lora`.",
            )
        if body.method == "recover":
            self._check_recovery(names)
        for i, stage in enumerate(body.stages):
            thetas = [stage.theta, *stage.fallback]
            if stage.fallback and not (body.watch and body.watch.stop):
                raise self.error(
                    ("stages", i, "fallback"),
                    "other thetas are tried where watch ends a stage; say watch: {stop: true}.",
                )
            if len(set(thetas)) < len(thetas):
                raise self.error(("stages", i, "fallback"), "a theta is there twice.")
        shortest = min(self.window(stage) for stage in body.stages)
        if shortest < 8:
            raise self.error(("stages",), f"{format_tokens(shortest)} tokens are no context.")

    def short_sources(self) -> list[str]:
        """Sources of short text, for a recovery."""
        packed = [source.name for source in self.body.data.sources if source.rows == "packed"]
        return self.body.recover.short or packed

    def _check_recovery(self, names: list[str]) -> None:
        recover = self.body.recover
        for i, name in enumerate(recover.short):
            if name not in names:
                raise self.error(
                    ("recover", "short", i),
                    f"'{name}' is no source{near(name, names)}; known are {', '.join(names)}.",
                )
        if recover.teacher is None and recover.distill:
            raise self.error(("recover", "distill"), "distillation needs a teacher.")
        if recover.teacher is not None and not self.short_sources():
            raise self.error(
                ("recover",),
                "a teacher is held against on short text; give a source with rows: packed, or name "
                "one under 'short'.",
            )
        for i, stage in enumerate(self.body.stages):
            for key, given in (("theta", stage.theta), ("fallback", stage.fallback)):
                if given:
                    raise self.error(
                        ("stages", i, key), "a recovery keeps the model's theta; leave it out."
                    )

    def _explained(self, error: ValidationError) -> InputError:
        """The first of pydantic's errors as one sentence: misspelt keys, then by line."""
        found = []
        for item in error.errors(include_url=False):
            where, block = _place(item["loc"], self.document.value)
            found.append((self.document.line(where), where, block, item))
        _, where, block, item = min(
            found, key=lambda entry: (entry[3]["type"] != "extra_forbidden", entry[0])
        )
        key = ".".join(str(part) for part in where) or "the recipe"
        kind, message = item["type"], item["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden":
            name = str(item["loc"][-1])
            known = list(block.model_fields)
            return self.error(
                where, f"'{name}' is no key here{near(name, known)}; known are {', '.join(known)}."
            )
        if kind == "missing":
            return self.error(where, f"'{item['loc'][-1]}' is missing.")
        if kind == "value_error":
            return self.error(where, f"{key}: {message}.")
        what = f"{message[:1].lower()}{message[1:]}"
        return self.error(where, f"{key}: {what}, not {shown(item['input'])}.")


def schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe, for editors."""
    result = Body.model_json_schema()
    result["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    result["title"] = "regraft training recipe"
    return result


def _place(loc: tuple[int | str, ...], value: Any) -> tuple[Where, type[BaseModel]]:
    """Pydantic's location as one in the YAML (it adds names of types), and the block around it."""
    where: Where = ()
    block: type[BaseModel] = Body
    kind: Any = Body
    for part in loc:
        keys: Any = value if isinstance(value, dict) else ()
        keys = range(len(value)) if isinstance(value, list) else keys
        if part not in keys:
            continue
        if blocks := _blocks(kind):
            block = next((b for b in blocks if part in b.model_fields), blocks[0])
            kind = block.model_fields[str(part)].annotation if part in block.model_fields else None
        where, value = (*where, part), value[part]
    return where, block


def _blocks(kind: Any) -> list[type[BaseModel]]:
    """The blocks in an annotation such as `list[Stage]` or `str | ToyModel`."""
    if isinstance(kind, type) and not isinstance(kind, types.GenericAlias):
        return [kind] if issubclass(kind, BaseModel) else []
    return [block for part in typing.get_args(kind) for block in _blocks(part)]
