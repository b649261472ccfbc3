"""`diversity`: documents that differ from the base corpus, in a band, and from each other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from regraft.data import sources
from regraft.data.build.document import Document
from regraft.data.build.process_cache import cached
from regraft.data.build.scoring.coreset import Vectors, farthest_first, greatest_similarity
from regraft.data.build.scoring.embedding import Embedder, check_embedder, normalise, open_embedder
from regraft.data.build.step import Context, Spool, Step
from regraft.data.build.tokens import count_tokens
from regraft.data.calibration import text_of_path
from regraft.device import pick_device
from regraft.errors import InputError
from regraft.recipe_values import Count, Number, Tokens
from regraft.units import counted

_BATCH = 256  # documents


class Diversity(Step):
    """Keep documents whose similarity to a sample of the base corpus is within a band, and of these
    a budget of tokens that covers all: each next one is the farthest from those chosen so far and
    from the sample (greedy k-centre, arXiv 1708.00489).

    Similarity is the cosine of embeddings less the mean of the sample's. With a budget the
    embeddings of all documents in the band are in memory (4 bytes a dimension: 1 GB for a million
    of 256 dimensions), their texts are not; without one, nothing is.
    """

    name: ClassVar[str] = "diversity"
    model: str = Field(
        description="embeddings: a folder of model2vec, or a causal language model (a folder or "
        "org/name[@revision]), whose last hidden states over the first 512 tokens are averaged"
    )
    base: str = Field(
        description="text of the base corpus: a file (.jsonl, .parquet, else text) or a folder of "
        "text files"
    )
    sample: Count = Field(default=1000, description="documents of the base corpus, drawn at random")
    least: Number = Field(
        default=-1.0, description="least similarity to the nearest document of the sample, -1 to 1"
    )
    most: Number = Field(default=1.0, description="greatest similarity to it")
    tokens: Tokens | None = Field(default=None, description="budget; default: the whole band")

    @model_validator(mode="after")
    def _band(self) -> Diversity:
        if not -1 <= self.least < self.most <= 1:
            raise ValueError("least and most are similarities from -1 to 1, least below most")
        return self

    @property
    def independent(self) -> bool:
        return self.tokens is None

    @property
    def uses_device(self) -> bool:
        return True

    def check(self) -> None:
        check_embedder(self.model)
        sources.files(text_of_path(self.base))

    def inputs(self) -> list[str]:
        return [self.base, *([self.model] if Path(self.model).is_dir() else [])]

    def run(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        embedder = cached(open_embedder, self.model, pick_device(context.device))
        seed = context.seed_of("base")
        mean, centred = cached(_centred_base, embedder, self.base, self.sample, seed)
        if self.tokens is None:
            for document, _ in self._in_band(documents, context, embedder, mean, centred):
                yield document
            return
        vectors: list[Vectors] = []

        def keep() -> Iterator[Document]:
            counted = count_tokens(documents, context.counter)
            for document, vector in self._in_band(counted, context, embedder, mean, centred):
                vectors.append(vector)
                yield document

        with context.spool(keep()) as spool:
            yield from self._cover(spool, vectors, context)

    def _in_band(
        self, documents: Iterator[Document], context: Context, embedder: Embedder,
        mean: Vectors, base: Vectors,
    ) -> Iterator[tuple[Document, Vectors]]:  # fmt: skip
        """Documents within the band with their similarity as a score, and their embeddings."""
        while batch := list(islice(documents, _BATCH)):
            vectors = normalise(embedder.embed([one.text for one in batch]) - mean)
            nearest = greatest_similarity(vectors, base)
            for document, vector, value in zip(batch, vectors, nearest, strict=True):
                similarity = float(f"{min(1.0, float(value)):.6g}")
                context.statistics.score(f"{self.name}.similarity", similarity)
                if similarity < self.least:
                    context.statistics.drop(f"similarity below {self.least:g}")
                elif similarity > self.most:
                    context.statistics.drop(f"similarity above {self.most:g}")
                else:
                    scores = {f"{self.name}.similarity": similarity}
                    yield document.with_scores(scores), vector

    def _cover(self, spool: Spool, vectors: list[Vectors], context: Context) -> Iterator[Document]:
        """The chosen documents in their order, each with its distance when it was chosen."""
        if not vectors:
            return
        matrix = np.stack(vectors)
        vectors.clear()
        similarity = np.empty(len(spool), np.float32)
        sizes = np.empty(len(spool), np.int64)
        for at, document in enumerate(spool):
            similarity[at] = document.scores[f"{self.name}.similarity"]
            sizes[at] = document.tokens or 0
        chosen = dict(farthest_first(matrix, similarity, sizes, self.tokens or 0))
        for at, document in enumerate(spool):
            if at not in chosen:
                context.statistics.drop("over the budget of tokens")
                continue
            distance = float(f"{chosen[at]:.6g}")
            context.statistics.score(f"{self.name}.distance", distance)
            yield document.with_scores({f"{self.name}.distance": distance})


def _centred_base(embedder: Embedder, base: str, count: int, seed: int) -> tuple[Vectors, Vectors]:
    """(mean, normalised differences from it) of the embeddings of `count` documents of `base`."""
    vectors = embedder.embed(_sample(base, count, np.random.default_rng(seed)))
    mean = vectors.mean(0)
    return mean, normalise(vectors - mean)


def _sample(base: str, count: int, rng: np.random.Generator) -> list[str]:
    """Documents of the base corpus, each equally likely (reservoir sampling)."""
    drawn = list[str]()
    for number, text in enumerate(sources.documents(text_of_path(base))):
        if number < count:
            drawn.append(text)
        elif (at := int(rng.integers(number + 1))) < count:
            drawn[at] = text
    if len(drawn) < 2:
        raise InputError(
            f"diversity: {base} has {counted(len(drawn), 'document')}, and a sample needs two or "
            "more; give a larger `base`."
        )
    return drawn
