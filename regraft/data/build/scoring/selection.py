"""Which documents go on, by a score: those above a threshold, or the best share of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from regraft.data.build.document import Document
from regraft.data.build.step import Context


def select(
    documents: Iterator[Document],
    context: Context,
    score: str,
    *,
    least: float | None,
    share: float | None,
) -> Iterator[Document]:
    """The documents whose `score` is at least `least` and, of these, the `share` with the highest,
    in their order; of equal ones the earlier. Without `share` nothing is held."""
    passing = _at_least(documents, context, score, least)
    if share is None:
        yield from passing
        return
    with context.spool(passing) as spool:
        scores = np.fromiter((document.scores[score] for document in spool), float, len(spool))
        best = np.argsort(-scores, kind="stable")[: round(share * len(spool))]
        chosen = np.zeros(len(spool), np.bool_)
        chosen[best] = True
        for document, take in zip(spool, chosen, strict=True):
            if take:
                yield document
            else:
                context.statistics.drop(f"below the best {share:.3g}")


def _at_least(
    documents: Iterator[Document], context: Context, score: str, least: float | None
) -> Iterator[Document]:
    for document in documents:
        if least is not None and document.scores[score] < least:
            context.statistics.drop(f"{score} below {least:g}")
        else:
            yield document
