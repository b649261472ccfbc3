"""Examine a checkpoint folder: its model and tokenizer as transformers builds them from disk."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from regraft.checkpoint.hf.pretrained import load_model
from regraft.checkpoint.hf.tokenizer import load_tokenizer
from regraft.checkpoint.read.source import Checkpoint
from regraft.data.toy_language import Row, Skill, exam_row, needle_count, prose_row
from regraft.demo.recipes import Plan
from regraft.demo.result import Exam

SPARSE = 4  # needles of the easier exam at the target length: as many as the shortest rows hold
_WORDS_PER_BATCH = 8192


def examine(folder: Path, plan: Plan, seed: int) -> Exam:
    """Retrieval by length, the derivative's skill, and NLL of prose by position.

    Every model gets the same rows. A question counts as answered when both words are the most
    likely ones; the second is predicted after the right first word, as in greedy decoding
    whenever the first was right.
    """
    with Checkpoint.open(folder) as checkpoint:
        model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    rope = model.config.rope_parameters
    return Exam(
        folder=folder.name,
        context=model.config.max_position_embeddings,
        theta=rope["rope_theta"],
        needle={
            length: _answered(model, tokenizer, plan, seed, length, "ask")
            for length in plan.lengths
        },
        sparse_needle=_answered(model, tokenizer, plan, seed, plan.target, "ask", SPARSE),
        shout={
            length: _answered(model, tokenizer, plan, seed, length, "shout")
            for length in (plan.trained, plan.target)
        },
        prose_nll=_prose_nll(model, tokenizer, plan, seed),
    )


def ids_of(tokenizer: Any, rows: list[Row]) -> Tensor:
    """Token ids of the rows [rows, length]; the tokenizer adds the `<s>` in front."""
    return torch.tensor(tokenizer([" ".join(row.words[1:]) for row in rows])["input_ids"])


@torch.no_grad()
def _answered(
    model: LlamaForCausalLM,
    tokenizer: Any,
    plan: Plan,
    seed: int,
    length: int,
    skill: Skill,
    count: int | None = None,
) -> float:
    """The share of questions answered in rows of `length` words with `count` needles."""
    rng = random.Random(f"{seed} exam {skill} {length}")
    count = needle_count(length) if count is None else count
    number = max(1, plan.questions // count)
    rows = [exam_row(rng, length, skill, count=count) for _ in range(number)]
    ids = ids_of(tokenizer, rows)
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
def _prose_nll(model: LlamaForCausalLM, tokenizer: Any, plan: Plan, seed: int) -> dict[str, float]:
    rng = random.Random(f"{seed} exam prose")
    length = plan.lengths[-1]
    ids = ids_of(tokenizer, [prose_row(rng, length) for _ in range(plan.prose_rows)])
    batch_size = max(1, _WORDS_PER_BATCH // length)
    nll = torch.cat([_word_nll(model, rows) for rows in ids.split(batch_size)]).mean(0)
    edges = (0, *plan.lengths)
    return {f"{low}-{high}": float(nll[low : high - 1].mean()) for low, high in pairwise(edges)}


def _word_nll(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """NLL in nats of every word but the first: [rows, length - 1]."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    nll = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return nll.view(len(ids), -1)
