"""Validation during training: NLL of held-out text by position, and a teacher-forced needle.

The needle probe puts a fact into held-out text and its question with the answer at the end, and
scores the tokens of the answer. The needle is found when each of them is the most likely token, so
that greedy decoding would give the answer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.data.batch import IGNORED, Row, collate, make_row
from regraft.data.positions import Sampler
from regraft.data.rows import Piece
from regraft.errors import InputError
from regraft.parallel import Mesh
from regraft.train.corpus import Corpus
from regraft.train.recipe.validation import Needle, Watch
from regraft.train.record import NeedleScore, ValidationScore
from regraft.train.step.learner import Learner
from regraft.train.step.rotary import frequencies_for
from regraft.units import format_tokens

_FILLER_DOCUMENTS = 64  # at most so many held-out documents surround the needles


class Validation:
    """Fixed rows of one length, which `run` scores: the same rows at every step.

    length: of a row in tokens. Raises InputError where no document is held out, or a needle does
    not fit.
    """

    def __init__(self, corpus: Corpus, settings: Watch, length: int, tokenizer: Any) -> None:
        self.corpus, self.settings = corpus, settings
        self.length = length
        self.edges = [0, *(self.length // 2**i for i in (4, 3, 2, 1)), self.length]
        self.text_rows = document_rows(corpus, self._held_out()[: settings.rows], self.length)
        if not self.text_rows:
            raise InputError(
                f"watch: no held-out document has anything to learn in its first "
                f"{self.length:,} tokens; give watch a greater length, or more documents."
            )
        self.needles: list[Row] = []
        if settings.needle is not None:
            self.needles = self._needle_rows(settings.needle, tokenizer)

    @torch.no_grad()
    def run(self, learner: Learner) -> ValidationScore:
        """Score the fixed rows. Collective."""
        learner.eval()
        with frequencies_for(learner, self.length):
            nll, _, valid = scores(learner, self.text_rows, self.corpus.mesh)
            by_position: dict[str, float] = {}
            for low, high in pairwise(self.edges):
                count = valid[:, low:high].sum()
                if count:
                    mean = float(nll[:, low:high].sum() / count)
                    by_position[f"{low}-{high}"] = round(mean, 6)
            needle = None
            if self.needles:
                nll, hit, valid = scores(learner, self.needles, self.corpus.mesh)
                share = ((hit * valid).sum(1) == valid.sum(1)).double().mean()
                mean = round(float(nll.sum() / valid.sum()), 6)
                needle = NeedleScore(nll=mean, accuracy=float(share))
        learner.train()
        return ValidationScore(nll=by_position, needle=needle)

    def _held_out(self, source: str | None = None) -> list[tuple[str, int]]:
        """(source, document) of held-out text, the longest first, since only they reach far
        positions. source: one source; None: those of the recipe, else all that are trained on."""
        body = self.corpus.recipe.body
        names = set(self.settings.sources) or {
            name for stage in body.stages for name in self.corpus.recipe.mix(stage)
        }
        documents = [
            (-int(self.corpus.tokens[name].lengths()[document]), name, int(document))
            for name, numbers in self.corpus.held_out.items()
            for document in numbers
            if name == source or (source is None and name in names)
        ]
        if not documents:
            raise InputError(f"watch: {self.corpus.why_none_held_out()}, or leave watch out.")
        return [(name, document) for _, name, document in sorted(documents)]

    def _needle_rows(self, needle: Needle, tokenizer: Any) -> list[Row]:
        rng = random.Random(f"{self.corpus.recipe.body.seed} needles")
        filler = np.concatenate(
            [self.corpus.tokens[name].slice(document, 0, self.length)
             for name, document in self._held_out(needle.filler)[:_FILLER_DOCUMENTS]]
        )  # fmt: skip
        filler = np.resize(filler, max(len(filler), 2 * self.length))
        rows = []
        for number in range(needle.rows):
            key = rng.choice(needle.keys)
            value = rng.choice(needle.values) if needle.values else f"{rng.randrange(10**5):05d}"
            fact, question, answer = (
                _token_ids(tokenizer, text.format(key=key, value=value))
                for text in (needle.fact, needle.question, needle.answer)
            )
            size = self.length - len(fact) - len(question) - len(answer)
            if size < 2:
                raise InputError(
                    f"watch: a needle and its question do not fit in {self.length} tokens; "
                    "give watch a greater length, or shorter texts."
                )
            start = rng.randrange(len(filler) - size + 1)
            text = filler[start : start + size].tolist()
            depth = max(1, round(size * (number + 0.5) / needle.rows))
            ids = [*text[:depth], *fact, *text[depth:], *question, *answer]
            labels = [IGNORED] * len(ids)
            for back in range(len(answer), 0, -1):
                labels[len(ids) - back - 1] = ids[len(ids) - back]
            rows.append(
                Row(
                    torch.tensor(ids), torch.arange(len(ids)), torch.tensor(labels),
                    torch.zeros(len(ids), dtype=torch.long),
                )
            )  # fmt: skip
        return rows


@torch.no_grad()
def scores(learner: Learner, rows: list[Row], mesh: Mesh) -> tuple[Tensor, Tensor, Tensor]:
    """(NLL, hit, valid) of all rows, float64 [rows, S] on the CPU of every process. Collective.

    hit: 1 where the label is the most likely token; valid: 1 where there is a label.
    """
    result = torch.zeros(2, len(rows), len(rows[0].ids), dtype=torch.float64)
    # All processes take part in every pass; one without rows left scores the last row again.
    for index in range(-(-len(rows) // mesh.data_size)):
        number = index * mesh.data_size + mesh.data_rank
        part = mesh.cut(collate([rows[min(number, len(rows) - 1)]]))
        nll, hit = (mesh.join(values, part) for values in learner(part, score=True))
        if number < len(rows) and mesh.context_rank == 0 and mesh.ulysses_rank == 0:
            result[0, number], result[1, number] = nll[0].double().cpu(), hit[0].double().cpu()
    result = mesh.sum(result.to(mesh.device)).cpu()
    return result[0], result[1], torch.stack([row.labels != IGNORED for row in rows]).double()


def document_rows(corpus: Corpus, documents: Sequence[tuple[str, int]], length: int) -> list[Row]:
    """A row for each (source, document): its first `length` tokens, at positions from 0. Without
    those that have no label: a conversation may begin with so long a question."""
    rows = []
    for name, document in documents:
        tokens = corpus.tokens[name]
        size = min(int(tokens.lengths()[document]), length)
        piece = Piece(document, 0, size, size)
        rows.append(
            make_row(
                [piece], tokens, length, Sampler("contiguous", length), (0, 0, 0), masks=True,
                padding=corpus.padding,
            )
        )  # fmt: skip
    return [row for row in rows if row.valid]


def reason_to_stop(results: Sequence[Mapping[str, float]], tolerance: float) -> str | None:
    """Why a stage should end: NLL at far positions has risen, or oscillates. None: continue.

    results: NLL by position of each validation in this stage, in order. tolerance: nats of NLL
    at the farthest positions.
    """
    if len(results) < 3:
        return None
    far = list(results[0])[-1]
    values = [result[far] for result in results]
    best = min(values)
    where = f"positions {_span(far)}"
    if all(value > best + tolerance for value in values[-2:]):
        return (
            f"NLL at {where} rose from {best:.3f} to {values[-1]:.3f} nats and stayed there: "
            "theta is too small for this length, or the rate too high."
        )
    moves = [b - a for a, b in pairwise(values[-4:])]
    swings = len(moves) == 3 and all(a * b < 0 for a, b in pairwise(moves))
    if swings and min(map(abs, moves)) > tolerance:
        return (
            f"NLL at {where} swings by more than {tolerance:g} nats from one validation to the "
            "next: the rate is too high."
        )
    return None


def _span(bucket: str) -> str:
    low, high = map(int, bucket.split("-"))
    return f"{format_tokens(low)} to {format_tokens(high)}"


def _token_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
