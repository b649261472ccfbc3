"""The map of domains: a sample of the documents of every source, similar ones near each other."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path

import xxhash

from regraft.data.build.document import Document
from regraft.data.build.scoring.embedding import Embedder
from regraft.data.build.scoring.projection import hashed_vectors, to_plane
from regraft.drawing import figure, styles

FIGURE = "map.png"
_MOST = 2000  # documents
_FEWEST = 10
_CHARACTERS = 8000  # of a document


class Sample:
    """Documents of each source that are drawn by the hashes of their ids: as many of each source,
    2,000 in all, and the same in any order."""

    def __init__(self, sources: Sequence[str]) -> None:
        self._most = max(1, _MOST // len(sources))
        self._drawn: dict[str, list[tuple[int, str]]] = {name: [] for name in sources}

    def add(self, document: Document) -> None:
        """Draw a document, or not."""
        drawn = self._drawn[document.source]
        rank = -xxhash.xxh3_64_intdigest(document.id.encode())
        if len(drawn) < self._most:
            heapq.heappush(drawn, (rank, document.text[:_CHARACTERS]))
        elif rank > drawn[0][0]:
            heapq.heapreplace(drawn, (rank, document.text[:_CHARACTERS]))

    def texts(self) -> dict[str, list[str]]:
        """The beginnings of the drawn documents, by source."""
        return {
            name: [text for _, text in sorted(drawn, reverse=True)]
            for name, drawn in self._drawn.items()
        }


def draw_map(path: Path, sample: Sample, embedder: Embedder | None) -> str | None:
    """Draw the map. Returns its caption; None, and no file, for fewer than ten documents.

    embedder: of the step `diversity`; without one, vectors of n-grams.
    """
    by_source = sample.texts()
    texts = [text for drawn in by_source.values() for text in drawn]
    if len(texts) < _FEWEST:
        return None
    vectors = hashed_vectors(texts) if embedder is None else embedder.embed(texts)
    points, method = to_plane(vectors)
    with figure(path, width=7.0, height=4.6) as axes:
        start = 0
        for (name, drawn), style in zip(by_source.items(), styles(), strict=False):
            part = points[start : start + len(drawn)]
            start += len(drawn)
            axes.scatter(
                part[:, 0], part[:, 1], s=9, alpha=0.6, linewidths=0.6,
                color=style["color"], marker=style["marker"], label=name,
            )  # fmt: skip
        axes.set_axis_off()  # places have no unit
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, markerscale=2)
    what = "hashed n-grams" if embedder is None else "the embeddings of the step diversity"
    return (
        f"{len(texts):,} documents as they were written, at most {_MOST // len(by_source):,} of a "
        f"source; near each other where their first {_CHARACTERS:,} characters are similar "
        f"({method} of {what})."
    )
