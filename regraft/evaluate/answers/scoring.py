"""Answers and their scores: teacher-forced, by candidate, or generated.

teacher: prompt and right answer in one forward pass without a cache; a reference counts if each of
its tokens is the likeliest after all before it. For a single reference that is what greedy decoding
says; for several it asks for the order in which the text names them. candidates: the answer with
the greatest mean log-probability of its tokens wins. generate: greedy text, scored as RULER does.
Candidates that do not fit in a batch together read their prompt once, into a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from regraft.evaluate.answers.distributed import spread
from regraft.evaluate.answers.model import LanguageModel
from regraft.evaluate.prompts.length import Encoded, Prompter
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
        found = _generate(model, prompter, asked, room, budget)
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


Forced = tuple[list[float], list[bool]]  # (mean NLL, all likeliest) of every reference


def _forced(model: LanguageModel, rows: Sequence[Encoded], budget: int) -> list[Forced]:
    """Of each row."""
    plan = list(batches([len(row.ids) for row in rows], budget))
    return _worked(model, rows, plan, model.score)


def _worked(
    model: LanguageModel, rows: Sequence[Encoded], plan: list[list[int]], score: Any
) -> list[Forced]:
    """Of each row; `plan`: the rows that `score` gets together."""

    def work(batch: list[int]) -> list[Forced]:
        wanted = [[at for ref in rows[i].wanted for at in ref] for i in batch]
        found = []
        scored = score([rows[i].ids for i in batch], wanted)
        for i, (nll, hits) in zip(batch, scored, strict=True):
            counts = [len(ref) for ref in rows[i].wanted]
            found.append(
                (
                    [float(part.mean()) for part in nll.split(counts)],
                    [bool(part.all()) for part in hits.split(counts)],
                )
            )
        return found

    forced: dict[int, Forced] = {}
    for batch, found in zip(plan, spread(model.mesh, plan, work), strict=True):
        forced |= dict(zip(batch, found, strict=True))
    return [forced[number] for number in range(len(rows))]


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
    rows: list[Encoded] = []
    owner: list[int] = []
    together: list[list[int]] = [[] for _ in asked]
    for number, (item, prompt) in enumerate(asked):
        for candidate in item.candidates:
            text, spans = listing([candidate])
            together[number].append(len(rows))
            rows.append(prompter.encode(prompt, text, spans))
            owner.append(number)
    most = max(sum(len(rows[i].ids) for i in group) for group in together)
    if model.can_branch and most > budget:
        forced = _worked(model, rows, together, model.branches)
    else:
        forced = _forced(model, rows, budget)
    best: list[tuple[float, str]] = [(float("inf"), "")] * len(asked)
    nll_of = [0.0] * len(asked)
    counts = [0] * len(asked)
    for (nll, _), number in zip(forced, owner, strict=True):
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
    model: LanguageModel, prompter: Prompter, asked: list[tuple[Item, str]], room: int, budget: int
) -> list[Answered]:
    prompts = [prompter.ids(prompt) for _, prompt in asked]
    # of one length only: a padded prompt's attention takes twice as long, and there are few lengths
    alike: dict[int, list[int]] = {}
    for number, ids in enumerate(prompts):
        alike.setdefault(len(ids), []).append(number)
    plan = [
        group[start : start + max(1, budget // length)]
        for length, group in alike.items()
        for start in range(0, len(group), max(1, budget // length))
    ]

    def work(batch: list[int]) -> list[str]:
        said = model.generate([prompts[i] for i in batch], room)
        return [prompter.tokenizer.decode(ids, skip_special_tokens=True) for ids in said]

    texts: dict[int, str] = {}
    for batch, found in zip(plan, spread(model.mesh, plan, work), strict=True):
        texts |= dict(zip(batch, found, strict=True))
    return [
        {"score": score_text(texts[n], item.references, item.scorer), "said": texts[n]}
        for n, (item, _) in enumerate(asked)
    ]
