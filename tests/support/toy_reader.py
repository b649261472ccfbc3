"""A scorer that knows the toy language, and text of it that needs its length more or less."""

from __future__ import annotations

import random

import numpy as np
import torch

from regraft.data.toy_language import IDS, exam_row


class Reader:
    """Reads an answer from its needle, and guesses all other words."""

    start, context = IDS["<s>"], 4096

    def last(self, texts, count):
        rows = [
            [self._nll(text, at) for at in range(len(text) - count, len(text))] for text in texts
        ]
        return torch.tensor(rows, dtype=torch.float32)

    def _nll(self, ids, at):
        for place in (2, 3):  # of an answer's word, counted from `ask`
            if at >= place and ids[at - place] == IDS["ask"]:
                key = ids[at - place + 1]
                for note in reversed(range(at - place)):
                    if ids[note : note + 2] == [IDS["note"], key]:
                        return 0.1 if ids[note + place] == ids[at] else 8.0
                return np.log(32)
        return np.log(len(IDS))


def shuffled(rng: random.Random, words: list[str]) -> list[str]:
    """The words with their sentences in random order; the first word stays."""
    sentences = " ".join(words[1:]).replace(" .", " .\n").replace(" ;", " ;\n").split("\n")
    return [words[0], *" ".join(rng.sample(sentences, len(sentences))).split()]


def joined_shorts(rng: random.Random) -> list[str]:
    """Sixteen short documents, each with a fact and its question."""
    return ["<s>", *(w for _ in range(16) for w in exam_row(rng, 25, count=1).words[1:])]
