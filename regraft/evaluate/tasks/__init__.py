"""Tasks: items with reference answers, twins without evidence, and an oracle that solves them.

A `Task` makes items of a given length. Every item has a twin, the same prompt with its evidence
replaced by something of the same form: a model's score on it does not come from reading. Every
generated task has an oracle, `solve`, a simple program that reads the prompt and scores 100% on the
items and 0 on the twins.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from regraft.data.generate.fit import TooShort, fit
from regraft.evaluate.prompts.haystack import Corpus, unique_share
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.tasks.text_scores import METRICS

_CONTROL = re.compile(r"[\x00-\x1f]")
Scorer = str  # 'all', 'part', or one of text_scores.METRICS
Scoring = Literal["teacher", "candidates", "generate"]


@dataclass(frozen=True)
class ItemDetails:
    """Facts about an item beside its text.

    depth: where in the text the evidence is, 0 to 1; text_share: the part of the text's words that
    fitted into the prompt; question: without its text, for the judge.
    """

    depth: float | None = None
    text_share: float | None = None
    question: str | None = None


@dataclass(frozen=True)
class Draft:
    """The texts of one item, before they get the model's template.

    question: with its text; twin: the same without evidence; references: in the order in which a
    good answer names them; prefix: the beginning of the answer.
    """

    question: str
    twin: str
    references: tuple[str, ...]
    prefix: str = ""
    candidates: tuple[str, ...] = ()
    details: ItemDetails = ItemDetails()


@dataclass(frozen=True)
class Item:
    """A prompt with its answer.

    answer: the right answer, which follows `prompt`; spans: (start, end) of each reference in
    `answer`, in characters; tokens: length of the prompt; unique: share of the prompt's text that
    is not repeated; hash: of prompt, twin, answer, references and candidates; text: the number of
    the text that it shares with other items, None if it has its own.
    """

    task: str
    length: int
    number: int
    prompt: str
    twin: str
    answer: str
    spans: list[tuple[int, int]]
    references: list[str]
    candidates: list[str]
    scorer: Scorer
    tokens: int
    unique: float
    details: ItemDetails
    hash: str
    text: int | None = None

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Item:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**line, "details": ItemDetails(**line["details"])})


class Kit:
    """What tasks need to make items: prompter, haystack, seed and the run's settings.

    needles: of the needle task; decoys: needles of other keys beside them; depths: grid points.
    group_sizes: questions about one text by (task, length), where they were counted.
    """

    def __init__(
        self,
        prompter: Prompter,
        haystack: Corpus,
        *,
        seed: int = 0,
        needles: int = 1,
        decoys: int = 0,
        depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        questions: Sequence[Any] = (),
    ) -> None:
        self.prompter, self.haystack, self.seed = prompter, haystack, seed
        self.needles, self.decoys, self.depths = needles, decoys, tuple(depths)
        self.questions = questions
        self.group_sizes: dict[tuple[str, int], int] = {}

    def rng(self, *name: object) -> random.Random:
        """A random generator seeded by the run's seed and `name`."""
        return random.Random(" ".join(map(str, (self.seed, *name))))

    def fit(
        self, task: str, build: Callable[[int], str], budget: int, prefix: str, least: int = 0
    ) -> int:
        """`length.fit` for a question and the beginning of its answer."""

        def count(question: str) -> int:
            return self.prompter.count(self.prompter.wrap(question, prefix))

        return fit(build, count, budget, least=least, what=f"prompt of {task}")

    def fit_text(
        self,
        task: str,
        build: Callable[[int], str],
        budget: int,
        endings: Sequence[tuple[str, str]],
        least: int = 0,
    ) -> int:
        """`fit` for a text that `build` makes and the longest question about it.

        endings: for each question, its words, which follow the text, and the beginning of its
        answer.
        """
        question, prefix = max(endings, key=lambda one: self.prompter.count("".join(one)))
        return self.fit(task, lambda units: build(units) + question, budget, prefix, least)


@dataclass(frozen=True)
class Task:
    """A kind of question.

    make: (kit, tokens for the prompt, item number) -> Draft. make_group: (kit, tokens for the
    prompt, text number, n) -> the drafts of n questions about one text, or of fewer where it has no
    more, equally many for each text; None if a text has one question only. solve: the oracle.
    answer_tokens: tokens reserved for the answer, and the most that are generated. scoring: the
    default. skill: the task does not measure the use of context, so it has no transfer. haystack:
    it hides its evidence in the run's haystack. max_items: None where there is no limit. judged:
    answers are free text, so a judge may read them.
    """

    name: str
    make: Callable[[Kit, int, int], Draft]
    solve: Callable[[str], list[str]]
    answer_tokens: int
    scorer: Scorer = "all"
    scoring: Scoring = "teacher"
    skill: bool = False
    haystack: bool = True
    max_items: int | None = None
    judged: bool = False
    make_group: Callable[[Kit, int, int, int], list[Draft]] | None = None

    def item(self, kit: Kit, length: int, number: int) -> Item:
        """Item `number` for a context of `length` tokens, answer included. Raises TooShort if
        the task does not fit in it."""
        draft = self.make(kit, self._budget(length), number)
        return self._item(kit, length, number, draft)

    def group(self, kit: Kit, length: int, text: int, questions: int) -> list[Item]:
        """Items with up to `questions` questions about text number `text`, as `item` makes one.
        `make_group` must not be None."""
        assert self.make_group is not None
        drafts = self.make_group(kit, self._budget(length), text, questions)
        first = text * len(drafts)
        return [
            self._item(kit, length, number, draft, text)
            for number, draft in enumerate(drafts, first)
        ]

    def _budget(self, length: int) -> int:
        if length <= self.answer_tokens:
            raise TooShort(
                f"{self.name} reserves {self.answer_tokens} tokens for its answer, so it needs "
                f"more than {length}; raise --lengths or leave it out."
            )
        return length - self.answer_tokens

    def _item(
        self, kit: Kit, length: int, number: int, draft: Draft, text: int | None = None
    ) -> Item:
        prompt = kit.prompter.wrap(draft.question, draft.prefix)
        twin = kit.prompter.wrap(draft.twin, draft.prefix)
        references = list(draft.references)
        answer, spans = listing(references if self.scorer == "all" else references[:1])
        ids = kit.prompter.ids(prompt)
        hashed = "\0".join((prompt, twin, answer, *references, *draft.candidates))
        return Item(
            self.name, length, number, prompt, twin, answer, spans, references,
            list(draft.candidates), self.scorer, len(ids), round(unique_share(ids), 4),
            draft.details, hashlib.sha256(hashed.encode()).hexdigest()[:16], text,
        )  # fmt: skip


def listing(references: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """' a, b and c', and the spans of a, b and c in it."""
    text, spans = "", []
    for number, reference in enumerate(references):
        if number:
            text += "," if number < len(references) - 1 else " and"
        text += " "
        spans.append((len(text), len(text) + len(reference)))
        text += reference
    return text, spans


def score_text(text: str, references: Sequence[str], scorer: Scorer) -> float:
    """The score of a generated answer, 0 to 1.

    RULER's scorers (arXiv 2404.06654) are the share of references that occur in the answer (`all`)
    and whether any does (`part`); they ignore case, and ASCII control characters become line breaks
    first. For the other scorers see `text_scores`.
    """
    text = _CONTROL.sub("\n", text.strip()).strip()
    if scorer in METRICS:
        return METRICS[scorer](text, references)
    hits = [reference.lower() in text.lower() for reference in references]
    return float(any(hits)) if scorer == "part" else sum(hits) / len(hits)
