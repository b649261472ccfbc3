"""Text worth reading: not repetitive, neither noise nor boilerplate, in the right language.

The limits on repetition are Gopher's, see `repetition.py`. The band of compression ratios is Olmo
3's, which drops the most and the least compressible fifth of its long documents; here it is a band
of ratios or of shares.
"""

from __future__ import annotations

import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from regraft.data.build.document import Document
from regraft.data.build.step import Context, Step
from regraft.data.build.steps.language import LANGUAGES, language_of
from regraft.data.build.steps.repetition import LIMITS, repetition_shares
from regraft.recipe_values import Count, Share

_SAMPLE = 1 << 20  # characters of a document that are looked at: its beginning, middle and end
Band = Annotated[list[Share], Field(min_length=2, max_length=2)]


class Quality(Step):
    """Drop repetitive text, noise and other languages by cheap rules, and keep the scores."""

    name: ClassVar[str] = "quality"
    characters: Count = Field(default=200, description="fewest of a document")
    repetition: bool = Field(
        default=True, description="Gopher's limits on repeated lines, paragraphs and word sequences"
    )
    compression: Band = Field(
        default=[0.1, 0.9],
        description="least and greatest size after zlib as a share of the size before: below it is "
        "repetition, above it noise",
    )
    compression_shares: Band | None = Field(
        default=None,
        description="instead: keep documents between these shares of all, such as [0.2, 0.8] "
        "without the most and the least compressible fifth",
    )
    letters: Share = Field(default=0.5, description="least share of letters among characters")
    symbols: Share = Field(
        default=0.3, description="greatest share of characters that are no letter, digit or space"
    )
    control: Share = Field(
        default=0.001, description="greatest share of control and replacement characters"
    )
    languages: list[str] = Field(
        default=[],
        description=f"keep these only, by their function words or their script: "
        f"{', '.join(LANGUAGES)}; default: all",
    )

    @model_validator(mode="after")
    def _known(self) -> Quality:
        for language in self.languages:
            if language not in LANGUAGES:
                raise ValueError(f"'{language}' is not one of {', '.join(LANGUAGES)}")
        return self

    @property
    def independent(self) -> bool:
        """Unless documents are compared by their compression."""
        return self.compression_shares is None

    def run(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        """The documents within all limits, with the scores that decided."""
        passed = self._within_limits(documents, context)
        if self.compression_shares is None:
            yield from passed
            return
        ratios = array("d")

        def collected() -> Iterator[Document]:
            for document in passed:
                ratios.append(document.scores["quality.compression"])
                yield document

        with context.spool(collected()) as spool:
            low, high = _between(ratios, self.compression_shares)
            for document in spool:
                ratio = document.scores["quality.compression"]
                if low <= ratio <= high:
                    yield document
                else:
                    context.statistics.drop(f"compression below {low:.3g} or above {high:.3g}")

    def _within_limits(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        for document in documents:
            text = _sample(document.text)
            scores = {"compression": compression_ratio(text), **character_shares(text)}
            reason = self._character_fault(document.text, scores)
            if reason is None and self.languages:
                language = language_of(text)
                if language not in self.languages:
                    reason = f"language {language or 'unknown'}"
            if reason is None and self.repetition:
                shares = repetition_shares(text)
                scores["repetition"] = max(shares[name] / limit for name, limit in LIMITS.items())
                worst = max(LIMITS, key=lambda name: shares[name] / LIMITS[name])
                if scores["repetition"] > 1:
                    reason = f"repetition: {worst}"
            for name, value in scores.items():
                context.statistics.score(name, value)
            if reason is not None:
                context.statistics.drop(reason)
                continue
            kept = {f"quality.{name}": scores[name] for name in ("compression", "repetition")
                    if name in scores}  # fmt: skip
            yield document.with_scores(kept)

    def _character_fault(self, text: str, scores: dict[str, float]) -> str | None:
        if len(text) < self.characters:
            return "too few characters"
        if self.compression_shares is None:
            if scores["compression"] < self.compression[0]:
                return "too compressible"
            if scores["compression"] > self.compression[1]:
                return "too little compressible"
        if scores["letters"] < self.letters:
            return "too few letters"
        if scores["symbols"] > self.symbols:
            return "too many symbols"
        if scores["control"] > self.control:
            return "control characters"
        return None


def compression_ratio(text: str) -> float:
    """Size of the text after zlib (level 6) as a share of its size before, at most 1."""
    data = text.encode()
    return min(1.0, len(zlib.compress(data)) / len(data)) if data else 1.0


def character_shares(text: str) -> dict[str, float]:
    """Shares of letters, of symbols (neither letter, digit nor space) and of control characters."""
    whole = max(1, len(text))
    letters = symbols = control = 0
    for character, count in Counter(text).items():
        if character.isalpha():
            letters += count
        elif not character.isspace() and not character.isdigit():
            symbols += count
        if character == "\ufffd" or (not character.isprintable() and not character.isspace()):
            control += count
    return {"letters": letters / whole, "symbols": symbols / whole, "control": control / whole}


def _between(values: Sequence[float], shares: list[float]) -> tuple[float, float]:
    """The least and greatest of the values between two shares of all, in order."""
    ordered = sorted(values)
    if not ordered:
        return 0.0, 1.0
    start, stop = (round(share * len(ordered)) for share in shares)
    low = min(start, len(ordered) - 1)
    return ordered[low], ordered[max(low, stop - 1)]


def _sample(text: str) -> str:
    """A long text's beginning, middle and end, 1 M characters together."""
    if len(text) <= _SAMPLE:
        return text
    part, middle = _SAMPLE // 3, len(text) // 2
    return text[:part] + "\n" + text[middle : middle + part] + "\n" + text[-part:]
