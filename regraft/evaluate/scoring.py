"""Answers and their scores: teacher-forced, by candidate, or generated.

teacher: prompt and right answer in one forward pass without a cache; a reference counts if each of
its tokens is the likeliest after all before it. For a single reference that is what greedy decoding
says; for several it asks for the order in which the text names them. candidates: the answer with
the greatest mean log-probability of its tokens wins. generate: greedy text, scored as RULER does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from regraft.evaluate.fitting import Encoded, Prompter
from regraft.evaluate.model import LanguageModel
from regraft.evaluate.tasks import Item, Scoring, listing, score_text

Answered = dict[str, Any]  # score, twin (a score) and, where known, nll and twin_nll


def answer(
    model: LanguageModel,
    prompter: Prompter,
    items: Sequence[Item],
    scoring: Scoring,
    *,
    budget: int,
    room: int,
    twins: bool = True,
) -> list[Answered]:
    """What a model does with each item and its twin, in the order of `items`.

    budget: tokens in a batch. room: tokens to generate. Scores are from 0 to 1; nll is the mean
    over the references' tokens, in nats.
    """
    asked = [(item, item.prompt) for item in items]
    if twins:
        asked += [(item, item.twin) for item in items]
    if scoring == "teacher":
        found = _teacher(model, prompter, asked, budget)
    elif scoring == "candidates":
        found = _candidates(model, prompter, asked, budget)
    else:
        found = _generate(model, prompter, asked, room)
    answers = []
    for number, item in enumerate(items):
        mine = {**found[number], "hash": item.hash}
        if twins:
            blind = found[len(items) + number]
            mine["twin"] = blind["score"]
            if "nll" in blind:
                mine["twin_nll"] = blind["nll"]
        answers.append(mine)
    return answers


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of rows of like length, so many that all filled up hold at most `budget` tokens."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batch: list[int] = []
    for index in order:
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _forced(
    model: LanguageModel, rows: Sequence[Encoded], budget: int
) -> list[tuple[list[float], list[bool]]]:
    """For each row (mean NLL, all likeliest) of every reference."""
    found: list[tuple[list[float], list[bool]]] = [([], []) for _ in rows]
    for batch in batches([len(row.ids) for row in rows], budget):
        hidden = model.rows([rows[i].ids for i in batch])
        at = [(j, p) for j, i in enumerate(batch) for ref in rows[i].wanted for p in ref]
        where = torch.tensor(at, device=hidden.device)
        wanted = torch.tensor([rows[batch[j]].ids[p] for j, p in at])
        nll, hits = model.nll(hidden[where[:, 0], where[:, 1] - 1], wanted)
        start = 0
        for i in batch:
            for ref in rows[i].wanted:
                span = slice(start, start + len(ref))
                found[i][0].append(float(nll[span].mean()))
                found[i][1].append(bool(hits[span].all()))
                start += len(ref)
    return found


def _teacher(
    model: LanguageModel, prompter: Prompter, asked: list[tuple[Item, str]], budget: int
) -> list[Answered]:
    rows = [prompter.encode(prompt, item.answer, item.spans) for item, prompt in asked]
    return [
        {"score": sum(hits) / len(hits), "nll": sum(nll) / len(nll)}
        for nll, hits in _forced(model, rows, budget)
    ]


def _candidates(
    model: LanguageModel, prompter: Prompter, asked: list[tuple[Item, str]], budget: int
) -> list[Answered]:
    rows, owner = [], []
    for number, (item, prompt) in enumerate(asked):
        for candidate in item.candidates:
            text, spans = listing([candidate])
            rows.append(prompter.encode(prompt, text, spans))
            owner.append(number)
    best: list[tuple[float, str]] = [(float("inf"), "")] * len(asked)
    nll_of = [0.0] * len(asked)
    counts = [0] * len(asked)
    for (nll, _), number in zip(_forced(model, rows, budget), owner, strict=True):
        item = asked[number][0]
        candidate = item.candidates[counts[number]]
        counts[number] += 1
        best[number] = min(best[number], (nll[0], candidate))
        if candidate == item.references[0]:
            nll_of[number] = nll[0]
    return [
        {"score": float(best[n][1] == item.references[0]), "nll": nll_of[n], "said": best[n][1]}
        for n, (item, _) in enumerate(asked)
    ]


def _generate(
    model: LanguageModel, prompter: Prompter, asked: list[tuple[Item, str]], room: int
) -> list[Answered]:
    answers = []
    for item, prompt in asked:
        ids = model.generate(prompter.ids(prompt), room)
        said = prompter.tokenizer.decode(ids, skip_special_tokens=True)
        answers.append({"score": score_text(said, item.references, item.scorer), "said": said})
    return answers
