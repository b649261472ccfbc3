"""The demo's base and its extension for benchmarks, and an exam of a model in rows of its language.

Every row of the exam asks for all its needles; `regraft evaluate` asks one question a prompt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from regraft.checkpoint.hf.pretrained import load_model
from regraft.checkpoint.hf.tokenizer import load_tokenizer
from regraft.checkpoint.read.source import Checkpoint
from regraft.data.toy_language import Row, Skill, exam_row, needle_count, prose_row
from regraft.demo.job import demo_recipe

TRAINED, TARGET = 64, 1024  # tokens
THETA = 70.0  # of the base
_WORDS_PER_BATCH = 8192


def base_recipe(seed: int, *, quick: bool = False) -> dict[str, Any]:
    """The training recipe of the demo's base. quick: two steps, which learn nothing."""
    recipe = demo_recipe(seed).value["base"]["train"]
    if quick:
        for stage in recipe["stages"]:
            stage |= {"steps": 1, "batch": 4}
    return recipe


def extended_recipe(seed: int, model: Path) -> dict[str, Any]:
    """The training recipe that extends the demo's base."""
    return {"model": str(model), **demo_recipe(seed).value["extend"]}


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    """Write the recipe as YAML. Returns `path`."""
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


@dataclass(frozen=True)
class Exam:
    """lengths: of the rows, the last also of prose; questions: at each length."""

    lengths: Sequence[int] = (64, 128, 256, 512, 1024)
    questions: int = 256
    prose_rows: int = 32
    seed: int = 0

    def quick(self) -> Exam:
        """An exam that says little, in a second."""
        return Exam(lengths=(TRAINED, TARGET), questions=4, prose_rows=2)


@dataclass(frozen=True)
class Answers:
    """A model's results. needle, shout: share of questions answered, by length of the row; shout at
    the first and the last length. prose_nll: mean NLL of prose in nats a word, by position, such as
    '64-128'."""

    needle: dict[int, float]
    shout: dict[int, float]
    prose_nll: dict[str, float]


def examine(folder: Path, exam: Exam) -> Answers:
    """Every model gets the same rows. A question counts as answered when both words are the most
    likely ones; the second is predicted after the right first word, as in greedy decoding whenever
    the first was right."""
    with Checkpoint.open(folder) as checkpoint:
        model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)

    def answered(length: int, skill: Skill) -> float:
        return _answered(model, tokenizer, exam, length, skill)

    return Answers(
        needle={length: answered(length, "ask") for length in exam.lengths},
        shout={length: answered(length, "shout") for length in (exam.lengths[0], exam.lengths[-1])},
        prose_nll=_prose_nll(model, tokenizer, exam),
    )


def _ids(tokenizer: Any, rows: list[Row]) -> Tensor:
    """Token ids of the rows [rows, length]; the tokenizer adds the `<s>` in front."""
    return torch.tensor(tokenizer([" ".join(row.words[1:]) for row in rows])["input_ids"])


@torch.no_grad()
def _answered(
    model: LlamaForCausalLM, tokenizer: Any, exam: Exam, length: int, skill: Skill
) -> float:
    rng = random.Random(f"{exam.seed} exam {skill} {length}")
    count = needle_count(length)
    rows = [exam_row(rng, length, skill) for _ in range(max(1, exam.questions // count))]
    ids = _ids(tokenizer, rows)
    right = 0
    batch_size = max(1, _WORDS_PER_BATCH // length)
    for start in range(0, len(rows), batch_size):
        batch = ids[start : start + batch_size]
        predicted = model(input_ids=batch, use_cache=False).logits.argmax(-1)
        for row, guess, truth in zip(rows[start:], predicted, batch, strict=False):
            right += sum(
                bool((guess[at - 1 : at + 1] == truth[at : at + 2]).all()) for at in row.answers
            )
    return right / (count * len(rows))


@torch.no_grad()
def _prose_nll(model: LlamaForCausalLM, tokenizer: Any, exam: Exam) -> dict[str, float]:
    rng = random.Random(f"{exam.seed} exam prose")
    length = exam.lengths[-1]
    ids = _ids(tokenizer, [prose_row(rng, length) for _ in range(exam.prose_rows)])
    batch_size = max(1, _WORDS_PER_BATCH // length)
    nll = torch.cat([_word_nll(model, rows) for rows in ids.split(batch_size)]).mean(0)
    edges = (0, *exam.lengths)
    return {f"{low}-{high}": float(nll[low : high - 1].mean()) for low, high in pairwise(edges)}


def _word_nll(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """NLL in nats of every word but the first: [rows, length - 1]."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    nll = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return nll.view(len(ids), -1)
