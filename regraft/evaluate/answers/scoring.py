"""Answers and their scores: teacher-forced, by candidate, or generated.

teacher: prompt and right answer in one forward pass without a cache; a reference counts if each of
its tokens is the likeliest one after all tokens before it. For a single reference this equals
greedy decoding; for several it expects the order in which the text names them. candidates: the
candidate with the greatest mean log-probability of its tokens is the answer. generate: greedy text,
scored as in RULER. A text that several items share, or if an item's candidates do not fit in a
batch together their prompt, is read once, into a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from regraft.evaluate.answers.distributed import map_over_processes
from regraft.evaluate.answers.model import LanguageModel
from regraft.evaluate.answers.served.model import ServedModel
from regraft.evaluate.prompts.length import Encoded, Prompter
from regraft.evaluate.result import Answer
from regraft.evaluate.statistics import mean
from regraft.evaluate.tasks import Item, Scoring, listing, score_text

Answerer = LanguageModel | ServedModel
# (token ids of each row, positions in each) -> of each row, (NLL, whether the likeliest) there
Texts = list[list[int]]  # the numbers of the prompts about each text
Score = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], list[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class _Scored:
    """One prompt's answer; see `result.Answer`."""

    score: float
    nll: float | None = None
    text: str | None = None


def answer(
    model: Answerer,
    prompter: Prompter,
    items: Sequence[Item],
    scoring: Scoring,
    *,
    budget: int,
    max_new_tokens: int,
    twins: bool = True,
    shared: bool = False,
) -> list[Answer]:
    """A model's answers to `items` and their twins, in that order.

    budget: tokens in a batch; a served model takes batches of any size. max_new_tokens: tokens to
    generate. twins: answer the twins, too. shared: read each text that items share once, which
    needs `model.can_branch`.
    """
    prompts = [(item, item.prompt) for item in items]
    if twins:
        prompts += [(item, item.twin) for item in items]
    texts = _by_text(items, len(prompts)) if shared else None
    if scoring == "teacher":
        scored = _teacher(model, prompter, prompts, budget, texts)
    elif scoring == "candidates":
        scored = _candidates(model, prompter, prompts, budget, texts)
    else:
        scored = _generate(model, prompter, prompts, max_new_tokens, budget, texts)
    twin_scores = scored[len(items) :] if twins else [None] * len(items)
    return [
        Answer(
            number=item.number,
            tokens=item.tokens,
            unique_share=item.unique,
            depth=item.details.depth,
            on_grid=item.task == "needle",
            text_share=item.details.text_share,
            scoring=scoring,
            score=own.score,
            nll=own.nll,
            said=own.text,
            hash=item.hash,
            text=item.text,
            twin=None if twin is None else twin.score,
            twin_nll=None if twin is None else twin.nll,
        )
        for item, own, twin in zip(items, scored, twin_scores, strict=False)
    ]


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of rows of similar length; a batch padded to its longest has at most `budget` tokens,
    or is a single row."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batch: list[int] = []
    for index in order:
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _by_text(items: Sequence[Item], prompts: int) -> Texts:
    """The numbers of the prompts about each text. prompts: how many, of items and then of twins,
    whose texts are others."""
    groups: dict[tuple[int, int | None], list[int]] = {}
    for number in range(prompts):
        twin, item = divmod(number, len(items))
        groups.setdefault((twin, items[item].text), []).append(number)
    return list(groups.values())


_Forced = tuple[list[float], list[bool]]  # (mean NLL, all tokens likeliest) of every reference


def _forced(model: Answerer, rows: Sequence[Encoded], budget: int) -> list[_Forced]:
    """The teacher-forced scores of each row."""
    plan = list(batches([len(row.ids) for row in rows], budget))
    return _score_batches(model, rows, plan, model.score)


def _score_batches(
    model: Answerer, rows: Sequence[Encoded], plan: list[list[int]], score: Score
) -> list[_Forced]:
    """The scores of each row. plan: the rows that are given to `score` together; score: a method of
    the model."""

    def work(batch: list[int]) -> list[_Forced]:
        positions = [[at for ref in rows[i].positions for at in ref] for i in batch]
        results = []
        scored = score([rows[i].ids for i in batch], positions)
        for i, (nll, hits) in zip(batch, scored, strict=True):
            counts = [len(ref) for ref in rows[i].positions]
            results.append(
                (
                    [float(part.mean()) for part in nll.split(counts)],
                    [bool(part.all()) for part in hits.split(counts)],
                )
            )
        return results

    forced: dict[int, _Forced] = {}
    for batch, results in zip(plan, map_over_processes(model.mesh, plan, work), strict=True):
        forced |= dict(zip(batch, results, strict=True))
    return [forced[number] for number in range(len(rows))]


def _teacher(
    model: Answerer,
    prompter: Prompter,
    prompts: list[tuple[Item, str]],
    budget: int,
    texts: Texts | None,
) -> list[_Scored]:
    rows = [prompter.encode(prompt, item.answer, item.spans) for item, prompt in prompts]
    if isinstance(model, LanguageModel) and texts:
        forced = _score_batches(model, rows, texts, model.branches)
    else:
        forced = _forced(model, rows, budget)
    return [_Scored(score=mean(hits), nll=mean(nll)) for nll, hits in forced]


def _candidates(
    model: Answerer,
    prompter: Prompter,
    prompts: list[tuple[Item, str]],
    budget: int,
    texts: Texts | None,
) -> list[_Scored]:
    rows: list[Encoded] = []
    owner: list[int] = []  # of each row, the number of its prompt
    groups: list[list[int]] = [[] for _ in prompts]  # of each prompt, its rows
    for number, (item, prompt) in enumerate(prompts):
        for candidate in item.candidates:
            text, spans = listing([candidate])
            groups[number].append(len(rows))
            rows.append(prompter.encode(prompt, text, spans))
            owner.append(number)
    most = max(sum(len(rows[i].ids) for i in group) for group in groups)
    if isinstance(model, LanguageModel) and texts:
        plan = [[row for number in text for row in groups[number]] for text in texts]
        forced = _score_batches(model, rows, plan, model.branches)
    elif isinstance(model, LanguageModel) and model.can_branch and most > budget:
        forced = _score_batches(model, rows, groups, model.branches)
    else:
        forced = _forced(model, rows, budget)
    best: list[tuple[float, str]] = [(float("inf"), "")] * len(prompts)
    nll_of = [0.0] * len(prompts)
    counts = [0] * len(prompts)
    for (nll, _), number in zip(forced, owner, strict=True):
        item = prompts[number][0]
        candidate = item.candidates[counts[number]]
        counts[number] += 1
        best[number] = min(best[number], (nll[0], candidate))
        if candidate == item.references[0]:
            nll_of[number] = nll[0]
    return [
        _Scored(score=float(best[n][1] == item.references[0]), nll=nll_of[n], text=best[n][1])
        for n, (item, _) in enumerate(prompts)
    ]


def _generate(
    model: Answerer,
    prompter: Prompter,
    prompts: list[tuple[Item, str]],
    max_new_tokens: int,
    budget: int,
    texts: Texts | None,
) -> list[_Scored]:
    ids = [prompter.ids(prompt) for _, prompt in prompts]
    if isinstance(model, ServedModel):
        answers = model.generate(ids, max_new_tokens)
    else:
        generate = model.generate_branches if texts else model.generate
        plan = texts or _one_length(ids, budget)
        answers = _generate_batches(
            model, prompter, ids, plan, lambda some: generate(some, max_new_tokens)
        )
    return [
        _Scored(score=score_text(text, item.references, item.scorer), text=text)
        for text, (item, _) in zip(answers, prompts, strict=True)
    ]


def _one_length(ids: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Batches of prompts of one length: a padded prompt's attention takes twice as long, and there
    are few lengths."""
    by_length: dict[int, list[int]] = {}
    for number, prompt_ids in enumerate(ids):
        by_length.setdefault(len(prompt_ids), []).append(number)
    return [
        group[start : start + max(1, budget // length)]
        for length, group in by_length.items()
        for start in range(0, len(group), max(1, budget // length))
    ]


def _generate_batches(
    model: LanguageModel,
    prompter: Prompter,
    ids: list[list[int]],
    plan: list[list[int]],
    generate: Callable[[list[list[int]]], list[list[int]]],
) -> list[str]:
    """The generated text of each prompt. plan: those that are given to `generate` together."""

    def work(batch: list[int]) -> list[str]:
        generated = generate([ids[i] for i in batch])
        return [prompter.tokenizer.decode(new, skip_special_tokens=True) for new in generated]

    texts: dict[int, str] = {}
    for batch, results in zip(plan, map_over_processes(model.mesh, plan, work), strict=True):
        texts |= dict(zip(batch, results, strict=True))
    return [texts[number] for number in range(len(ids))]
