"""The tokenised text of a recipe: the rows of each step, and the held-out documents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.batch import Row, make_row
from regraft.data.positions import Sampler
from regraft.data.rows import Mixture, Rows, hold_out
from regraft.data.sources import Text
from regraft.data.tokens import Tokens, default_cache, tokenise
from regraft.errors import InputError
from regraft.parallel import Mesh
from regraft.train.recipe.built_lengths import check_lengths
from regraft.train.recipe.data import Source
from regraft.train.recipe.recipe import Recipe
from regraft.train.recipe.stages import Stage
from regraft.units import format_tokens


class Corpus:
    """The tokens of every source, and the numbers of its documents that are trained on or held out.

    Collective: the first process fills the cache of tokens, the others read it.
    """

    def __init__(self, recipe: Recipe, tokenizer: Any, vocabulary: int, mesh: Mesh) -> None:
        self.recipe, self.mesh = recipe, mesh
        body = recipe.body
        padding = tokenizer.pad_token_id or tokenizer.eos_token_id or 0
        self.padding = padding if padding < vocabulary else 0  # an added token without a row
        cache = Path(body.data.cache).expanduser() if body.data.cache else default_cache()
        check_lengths(recipe, tokenizer)
        self.tokens: dict[str, Tokens] = {}
        self.trained_on: dict[str, NDArray[np.int64]] = {}
        self.held_out: dict[str, NDArray[np.int64]] = {}
        for first in (True, False):  # the first process fills the cache, the others read it
            if (mesh.rank == 0) == first:
                for i, source in enumerate(body.data.sources):
                    self._read(i, source.name, tokenizer, cache, vocabulary)
            mesh.wait()

    @property
    def digests(self) -> dict[str, str]:
        """Digest of each source's tokens, by name; a resumed run must have the same."""
        return {name: tokens.digest for name, tokens in self.tokens.items()}

    def check_same(self, before: dict[str, str]) -> None:
        """Raise InputError where the text is not that of the interrupted run. before: its
        digests."""
        for name, digest in self.digests.items():
            if before.get(name) != digest:
                raise InputError(
                    f"The source '{name}' has changed since the run was interrupted, so it cannot "
                    "continue; restore the text, or start again with --overwrite."
                )

    def why_none_held_out(self) -> str:
        """The end of a message: why no document is held out, and what to do about it."""
        body = self.recipe.body
        if body.data.held_out == 0:
            return "no document is held out, because data.held_out is 0; raise it"
        for source in body.data.sources:
            if (
                source.kind == "text"
                and source.separator is None
                and len(self.tokens[source.name]) < 2
            ):
                return (
                    f"no document is held out, because the source '{source.name}' is one document; "
                    "a text file is one document unless `separator` says what separates "
                    'documents, such as separator: "\\n\\n"'
                )
        return "no document is held out; give more documents or raise data.held_out"

    def stage(self, number: int) -> StageRows:
        """The rows of a stage, from its beginning. Raises InputError where a source has none."""
        recipe = self.recipe
        stage = recipe.body.stages[number]
        window, positions = recipe.window(stage), sampler(recipe, stage)
        rows = {}
        for i, source in enumerate(recipe.body.data.sources):
            if source.name not in recipe.mix(stage):
                continue
            seed = (recipe.body.seed * 1009 + number) * 1009 + i
            tokens = self.tokens[source.name]
            rows[source.name] = Rows(
                source.rows,
                tokens.lengths(),
                self.trained_on[source.name],
                window,
                reach=positions.reach(window),
                seed=seed,
                chat=None if tokens.chat is None else tokens,
            )
            if not len(rows[source.name]):
                learned = "" if tokens.chat is None else " with something to learn"
                raise recipe.error(
                    ("data", "sources", i),
                    f"no document of '{source.name}'{learned} fills half a row of "
                    f"{format_tokens(window)} tokens in stage {number + 1}; give longer ones, a "
                    "shorter stage, or rows: packed or joined.",
                )
        return StageRows(self, number, stage, window, positions, rows, Mixture(recipe.mix(stage)))

    def _read(self, i: int, name: str, tokenizer: Any, cache: Path, vocabulary: int) -> None:
        body = self.recipe.body
        source = body.data.sources[i]
        self.tokens[name] = tokenise(text_of(source, body.seed), tokenizer, cache, vocabulary)
        validates = body.watch is not None or body.method == "recover"
        share = body.data.held_out if validates else 0.0
        documents = hold_out(len(self.tokens[name]), share, body.seed)
        self.trained_on[name], self.held_out[name] = documents


def text_of(source: Source, seed: int) -> Text:
    """The text that a recipe's source describes."""
    return Text(
        source.kind, source.location, field=source.field, chat=source.chat,
        loss_on=source.loss_on, separator=source.separator,
        split=source.split, documents=source.documents, words=source.words, prose=source.prose,
        questions=source.questions, shout=source.shout, seed=seed,
    )  # fmt: skip


@dataclass
class StageRows:
    """The rows of one stage, in order. mixture: its state is the number of rows taken so far."""

    corpus: Corpus
    number: int
    stage: Stage
    window: int
    sampler: Sampler
    rows: dict[str, Rows]
    mixture: Mixture

    def next(self, step: int) -> list[Row]:
        """This process's rows of step `step` of the run. It must be called once for every step."""
        mesh, body = self.corpus.mesh, self.corpus.recipe.body
        share = self.stage.batch // mesh.data_size
        local = range(mesh.data_rank * share, (mesh.data_rank + 1) * share)
        shorts = self.corpus.recipe.short_sources()
        result = []
        for sample in range(self.stage.batch):
            name, number = self.mixture.next()
            if sample in local:
                result.append(
                    make_row(
                        self.rows[name].row(number),
                        self.corpus.tokens[name],
                        self.window,
                        self.sampler,
                        (body.seed, step, sample),
                        masks=body.data.masks,
                        padding=self.corpus.padding,
                        short=name in shorts,
                    )
                )
        return result


def sampler(recipe: Recipe, stage: Stage) -> Sampler:
    """The position sampler of a stage."""
    positions = recipe.body.positions
    return Sampler(
        positions.kind,
        stage.length,
        chunks=(positions.chunks[0], positions.chunks[1]),
        least=positions.least,
        unskipped=positions.unskipped,
        offset=positions.offset,
        content=positions.content,
    )
