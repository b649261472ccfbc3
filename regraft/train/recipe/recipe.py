"""Reading a training recipe: YAML whose every mistake is named by line before work starts."""

from __future__ import annotations

import json

from regraft.document import Document, Where
from regraft.errors import did_you_mean
from regraft.input_files import JsonObject
from regraft.recipe import BaseRecipe, Mistakes
from regraft.train.recipe.built import with_built
from regraft.train.recipe.schema import Body, trains_everything
from regraft.train.recipe.stages import Stage
from regraft.units import format_tokens


class Recipe(BaseRecipe[Body]):
    """A parsed training recipe."""

    schema = Body
    example = "model: org/name"

    def __init__(self, document: Document) -> None:
        super().__init__(with_built(document))

    def window(self, stage: Stage) -> int:
        """Tokens of a row of the stage: fewer than its length where positions skip."""
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

    def watch_length(self, stage: Stage) -> int:
        """Tokens of a row of validation: in a recovery the same for all stages, which are
        compared."""
        assert self.body.watch is not None
        stages = self.body.stages if self.body.method == "recover" else [stage]
        return self.body.watch.length or max(each.length for each in stages)

    def mix(self, stage: Stage) -> dict[str, float]:
        """Share of rows by source, summing to 1."""
        names = [source.name for source in self.body.data.sources]
        named = self.body.data.mixes[stage.mix] if isinstance(stage.mix, str) else stage.mix
        weights = named or dict.fromkeys(names, 1.0)
        total = sum(weights.values())
        return {name: weights[name] / total for name in names if name in weights}

    def canonical(self) -> str:
        """The recipe as one line of JSON, equal for recipes that request the same."""
        return json.dumps(self.body.model_dump(), sort_keys=True)

    def short_sources(self) -> list[str]:
        """Sources of short text, for a recovery."""
        packed = [source.name for source in self.body.data.sources if source.rows == "packed"]
        return self.body.recover.short or packed

    def check(self, mistakes: Mistakes) -> None:
        """Add every contradiction between parts of the recipe to `mistakes`."""
        body = self.body
        self._check_sources(mistakes)
        self._check_positions(mistakes)
        if not trains_everything(body) and body.freeze:
            mistakes.add(("freeze",), "lora freezes the model by itself; leave freeze out")
        for block, methods in (("lora", ("lora", "recover")), ("recover", ("recover",))):
            if body.method not in methods and block in self.document.value:
                mistakes.add(
                    (block,), f"method is {body.method}, which has no {block}; say method: {block}"
                )
        if body.load.bits == 4 and body.method != "lora":
            mistakes.add(("load", "bits"), "4-bit weights do not learn; say method: lora")
        if body.load.bits == 4 and body.dtype == "float64":
            mistakes.add(("dtype",), "4-bit weights have no float64; say float32 or bfloat16")
        for key in ("long_factor", "short_factor"):
            if getattr(body.rope, key) is not None and body.rope.family != "longrope":
                mistakes.add(("rope", key), "factors are of longrope; say family: longrope")
        if body.method != "lora" and body.export.kind == "adapter":
            mistakes.add(
                ("export", "kind"),
                "a full fine-tune is a model; export it and run `regraft extract-lora`",
            )
        if body.method == "recover":
            self._check_recovery(mistakes)
        for i, stage in enumerate(body.stages):
            thetas = [stage.theta, *stage.fallback]
            if stage.fallback and not (body.watch and body.watch.stop):
                mistakes.add(
                    ("stages", i, "fallback"),
                    "other thetas are tried where watch ends a stage; say watch: {stop: true}",
                )
            if len(set(thetas)) < len(thetas):
                mistakes.add(("stages", i, "fallback"), "a theta is listed twice")
        shortest = min(self.window(stage) for stage in body.stages)
        if shortest < 8:
            mistakes.add(("stages",), f"{format_tokens(shortest)} tokens are no context")

    def _check_sources(self, mistakes: Mistakes) -> None:
        """Names of sources are unique, and every name used elsewhere is one of them."""
        body = self.body
        names = [source.name for source in body.data.sources]
        for i, name in enumerate(names):
            if name in names[:i]:
                mistakes.add(("data", "sources", i, "name"), f"'{name}' is listed twice")
        if not names:
            mistakes.add(("data",), "give `sources`, or a folder as `built`")
            return
        uses: list[tuple[Where, str]] = [
            (("stages", i, "mix", name), name)
            for i, stage in enumerate(body.stages)
            if isinstance(stage.mix, dict)
            for name in stage.mix
        ]
        uses += [
            (("data", "mixes", mix, name), name)
            for mix, shares in body.data.mixes.items()
            for name in shares
        ]
        for i, stage in enumerate(body.stages):
            if isinstance(stage.mix, str) and stage.mix not in body.data.mixes:
                hint = did_you_mean(stage.mix, body.data.mixes)
                listed = ", ".join(body.data.mixes) or "none"
                mistakes.add(
                    ("stages", i, "mix"),
                    f"'{stage.mix}' is not a mix{hint}; the mixes are {listed}",
                )
        if body.watch and body.watch.needle and body.watch.needle.filler:
            uses.append((("watch", "needle", "filler"), body.watch.needle.filler))
        if body.watch:
            uses += [(("watch", "sources", i), name) for i, name in enumerate(body.watch.sources)]
        uses += [(("recover", "short", i), name) for i, name in enumerate(body.recover.short)]
        for where, name in uses:
            if name not in names:
                hint = did_you_mean(name, names)
                mistakes.add(
                    where, f"'{name}' is not a source{hint}; the sources are {', '.join(names)}"
                )

    def _check_positions(self, mistakes: Mistakes) -> None:
        positions = self.body.positions
        if positions.kind == "contiguous":
            if positions.window is not None:
                mistakes.add(
                    ("positions", "window"), "contiguous rows are as long as their stage's length"
                )
            return
        if positions.window is None:
            mistakes.add(("positions",), f"{positions.kind} needs a window: the tokens of a row")
        elif positions.window < 2 * positions.least:
            mistakes.add(
                ("positions", "window"),
                f"a window of {positions.window} tokens has no room for two chunks of "
                f"{positions.least}; give a longer window or a smaller 'least'",
            )
        if positions.chunks[0] > positions.chunks[1]:
            mistakes.add(("positions", "chunks"), "chunks are [fewest, most]")
        for i, source in enumerate(self.body.data.sources):
            if source.rows == "joined" and not self.body.data.masks:
                mistakes.add(
                    ("data", "sources", i, "rows"),
                    "joined rows without masks are one document; give masks: true or rows: whole",
                )

    def _check_recovery(self, mistakes: Mistakes) -> None:
        recover = self.body.recover
        stated = "distill" in recover.model_fields_set and recover.distill
        if recover.teacher is None and stated:
            mistakes.add(("recover", "distill"), "distillation needs a teacher")
        if recover.teacher is not None and not self.short_sources():
            mistakes.add(
                ("recover",),
                "the teacher is compared on short text; give a source with rows: packed, or name "
                "one under 'short'",
            )
        if recover.noise and not trains_everything(self.body):
            mistakes.add(("recover", "noise"), "noise is added to all weights; leave lora out")
        for i, stage in enumerate(self.body.stages):
            for key, value in (("theta", stage.theta), ("fallback", stage.fallback)):
                if value:
                    mistakes.add(
                        ("stages", i, key), "a recovery keeps the model's theta; leave it out"
                    )


def schema() -> JsonObject:
    """JSON schema (draft 2020-12) of a recipe, for editors."""
    result = Body.model_json_schema()
    result["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    result["title"] = "regraft training recipe"
    return result
