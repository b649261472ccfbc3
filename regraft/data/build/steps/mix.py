"""Sources in fixed shares of the tokens, such as long text with a replay of short text.

Static weights, as in the published recipes (Llama 3, ProLong, arXiv 2410.02660); a proxy model that
finds weights (DoReMi) needs several trainings, and none of them used one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from regraft.data.build.document import Document
from regraft.data.build.step import Context, Step
from regraft.data.build.steps.copies import Copies
from regraft.data.build.tokens import count_tokens
from regraft.errors import InputError, did_you_mean
from regraft.recipe_values import Positive, Tokens


class Mix(Step):
    """Leave out and repeat documents until the sources' tokens are in these shares.

    A step of the recipe, not of a source.
    """

    name: ClassVar[str] = "mix"
    weights: Annotated[dict[str, Positive], Field(min_length=1)] = Field(
        description="of the tokens, by source; a source without a weight is left out"
    )
    tokens: Tokens | None = Field(
        default=None, description="of all sources together; default: as many as `repeat` allows"
    )
    repeat: Annotated[Positive, Field(ge=1)] = Field(
        default=1.0, description="most copies of a document, on average over its source"
    )

    def run(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        """Documents, source by source. Raises InputError where a source is too small."""
        tokens: dict[str, int] = {}

        def counted() -> Iterator[Document]:
            for document in count_tokens(documents, context.counter):
                tokens[document.source] = tokens.get(document.source, 0) + (document.tokens or 0)
                yield document

        with context.spool(counted()) as spool:
            factors = self._factors(tokens)
            for name, factor in factors.items():
                context.statistics.score(f"copies of {name}", factor)
            for turn in range(math.ceil(max(factors.values()))):
                plan = {name: Copies(factor) for name, factor in factors.items()}
                for document in spool:
                    if document.source not in factors:
                        if turn == 0:
                            context.statistics.drop("no weight")
                        continue
                    copies = plan[document.source].next(document.tokens or 0)
                    if copies == 0 and turn == 0:
                        context.statistics.drop(f"left out of {document.source}")
                    if turn < copies:
                        name = document.id if turn == 0 else f"{document.id}#again{turn}"
                        yield document.with_text(document.text, id=name, tokens=document.tokens)

    def _factors(self, tokens: dict[str, int]) -> dict[str, float]:
        """How often the documents of each source are taken, on average."""
        for name in self.weights:
            if not tokens.get(name):
                hint = did_you_mean(name, tokens)
                raise InputError(f"mix: '{name}' is no source with text{hint}.")
        whole = sum(self.weights.values())
        shares = {name: weight / whole for name, weight in self.weights.items()}
        most = min(self.repeat * tokens[name] / share for name, share in shares.items())
        if self.tokens is not None and self.tokens > most:
            small = min(shares, key=lambda name: tokens[name] / shares[name])
            needed = shares[small] * self.tokens / tokens[small]
            raise InputError(
                f"mix: {self.tokens:,} tokens need {needed:.3g} copies of '{small}', which has "
                f"{tokens[small]:,}; raise `repeat`, or ask for at most {int(most):,} tokens."
            )
        amount = self.tokens or most
        return {name: share * amount / tokens[name] for name, share in shares.items()}
