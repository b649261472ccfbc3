"""Figures from answers: a cell for every model, task and length, means over tasks, and ratios."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from regraft.evaluate.report.transfer import compare, effective_length, long_score
from regraft.evaluate.result import (
    Answer,
    Cell,
    EffectiveLength,
    EvaluationRecord,
    Interval,
)
from regraft.evaluate.statistics import Ratio, mean, mean_interval, ratio, score_interval
from regraft.evaluate.statistics import standard_error as error_of_mean
from regraft.evaluate.tasks import Task
from regraft.evaluate.tasks.text_scores import detection

Answers = Mapping[tuple[str, str, int], Sequence[Answer]]  # by (model, task, length)
RatiosByTask = dict[str, dict[int, dict[str, Ratio | None]]]  # by task (or 'all'), length, name


@dataclass(frozen=True)
class Summary:
    """The parts of an EvaluationRecord that are computed from answers alone."""

    cells: dict[str, dict[str, dict[int, Cell]]]
    overall: dict[str, dict[int, float]]
    overall_tasks: list[str]
    effective_length: dict[str, EffectiveLength]
    long_score: dict[str, dict[int, Ratio | None]]


def cell(answers: Sequence[Answer], *, yes_or_no: bool = False) -> Cell:
    """The means over one cell's answers, with intervals. yes_or_no: the answers are, so
    precision and recall are given if they were generated."""
    scores, texts = _scores(answers), texts_of([answers])
    said = [answer.said for answer in answers if answer.said is not None]
    verdicts = [answer.judge for answer in answers if answer.judge is not None]
    clear = [verdict == "agrees" for verdict in verdicts if verdict != "no verdict"]
    yes = detection(said, scores) if yes_or_no and said else None
    depths = sorted(
        {answer.depth for answer in answers if answer.on_grid and answer.depth is not None}
    )
    return Cell(
        score=round(mean(scores), 6),
        items=len(answers),
        interval=_rounded(score_interval(scores, texts=texts)),
        tokens=round(mean([answer.tokens for answer in answers]), 1),
        unique_share=round(mean([answer.unique_share for answer in answers]), 4),
        nll=_mean([answer.nll for answer in answers]),
        nll_interval=_mean_interval([answer.nll for answer in answers], texts),
        twin=_mean([answer.twin for answer in answers]),
        twin_nll=_mean([answer.twin_nll for answer in answers]),
        twin_nll_interval=_mean_interval([answer.twin_nll for answer in answers], texts),
        text_share=_mean([answer.text_share for answer in answers]),
        judge=round(mean(clear), 6) if clear else None,
        judged=len(clear) if verdicts else None,
        depths={
            f"{depth:.3g}": round(
                mean([answer.score for answer in answers if answer.depth == depth]), 6
            )
            for depth in depths
        }
        or None,
        precision=yes.precision if yes else None,
        recall=yes.recall if yes else None,
        f1=yes.f1 if yes else None,
    )


def summarise(answers: Answers, tasks: Sequence[Task], models: Sequence[str]) -> Summary:
    """The cells, and the means and effective lengths over the tasks that are comparable.

    Comparable are tasks that measure the use of context and fit in every length, so that all
    lengths have the same tasks.
    """
    cells: dict[str, dict[str, dict[int, Cell]]] = {}
    yes_or_no = [task.name for task in tasks if task.scorer == "verdict"]
    for (model, task, length), lines in answers.items():
        of_task = cells.setdefault(model, {}).setdefault(task, {})
        of_task[length] = cell(lines, yes_or_no=task in yes_or_no)
    overall: dict[str, dict[int, float]] = {}
    effective: dict[str, EffectiveLength] = {}
    relative: dict[str, dict[int, Ratio | None]] = {}
    names, lengths = _comparable(answers, tasks, models[0])
    for model in models if names else ():
        if not all((model, name, lengths[0]) in answers for name in names):
            continue  # a served model that does not support every task
        overall[model] = {
            length: round(mean([cells[model][name][length].score for name in names]), 6)
            for length in lengths
        }
        shortest = [answers[model, name, lengths[0]] for name in names]
        error = error_of_mean(
            [score for part in shortest for score in _scores(part)], texts_of(shortest)
        )
        effective[model] = effective_length(overall[model], error)
        at = {length: [answers[model, name, length] for name in names] for length in lengths}
        relative[model] = long_score(
            {length: [s for part in parts for s in _scores(part)] for length, parts in at.items()},
            {length: texts_of(parts) for length, parts in at.items()},
        )
    return Summary(cells, overall, names, effective, relative)


def transfer_ratios(
    answers: Answers, tasks: Sequence[Task], roles: Sequence[str], own_length: int
) -> RatiosByTask:
    """Transfer and retention. own_length: the recipient's context; roles: the models compared."""
    result: RatiosByTask = {}
    skills = {task.name for task in tasks if task.skill}
    for task, length, scores, texts in _scores_by_cell(answers, tasks, roles):
        result.setdefault(task, {})[length] = compare(
            scores, within=length <= own_length, skill=task in skills, texts=texts
        )
    return result


def fidelity_ratios(
    answers: Answers, tasks: Sequence[Task], base: str, donor: str, adapted: Sequence[str]
) -> RatiosByTask:
    """Extraction fidelity of each of `adapted`, the base with an adapter; see `fidelity`.

    Tasks that do not measure the use of context are left out: the donor did not learn them.
    """
    result: RatiosByTask = {}
    tasks = [task for task in tasks if not task.skill]
    for task, length, scores, texts in _scores_by_cell(answers, tasks, [base, donor, *adapted]):
        result.setdefault(task, {})[length] = {
            name: ratio(scores[name], scores[base], scores[donor], scores[base], texts=texts)
            for name in adapted
        }
    return result


def _scores_by_cell(
    answers: Answers, tasks: Sequence[Task], models: Sequence[str]
) -> Iterator[tuple[str, int, dict[str, list[float]], list[int] | None]]:
    """(task, length, every model's scores item by item, the items' texts) of every cell, then of
    the comparable tasks combined, as 'all'."""
    comparable, common = _comparable(answers, tasks, models[0])
    lengths = sorted({length for _, _, length in answers})
    cells: list[tuple[tuple[str, ...], int]]
    cells = [((task.name,), length) for task, length in product(tasks, lengths)]
    cells += [(tuple(comparable), length) for length in common if len(comparable) > 1]
    for names, length in cells:
        if (models[0], names[0], length) in answers:
            parts = {model: [answers[model, name, length] for name in names] for model in models}
            yield (
                names[0] if len(names) == 1 else "all", length,
                {model: [s for part in of for s in _scores(part)] for model, of in parts.items()},
                texts_of(parts[models[0]]),
            )  # fmt: skip


def _comparable(answers: Answers, tasks: Sequence[Task], model: str) -> tuple[list[str], list[int]]:
    """(tasks that use context and were answered at every length, the lengths). Tasks with a fixed
    number of items are left out: their texts do not have the evaluated length."""
    lengths = sorted({length for _, _, length in answers})
    names = [
        task.name
        for task in tasks
        if not task.skill
        and task.max_items is None
        and all((model, task.name, length) in answers for length in lengths)
    ]
    return names, lengths


def losses_by_position(result: EvaluationRecord) -> dict[str, dict[int, float]]:
    """Model without an adapter -> the end of a part of the text -> the mean NLL in it, in nats."""
    adapted = result.fidelity.adapters if result.fidelity else {}
    return {
        name: {int(part.rpartition("-")[2]): loss for part, loss in facts.perplexity.nll.items()}
        for name, facts in result.measures.items()
        if name not in adapted and facts.perplexity is not None and facts.perplexity.nll
    }


def _scores(answers: Sequence[Answer]) -> list[float]:
    return [answer.score for answer in answers]


def texts_of(cells: Sequence[Sequence[Answer]]) -> list[int] | None:
    """The number of the text of each answer in the cells, as `statistics` has it."""
    if all(answer.text is None for answers in cells for answer in answers):
        return None
    numbers: dict[tuple[int, int | None, int], int] = {}
    return [
        numbers.setdefault((cell, one.text, one.number if one.text is None else 0), len(numbers))
        for cell, answers in enumerate(cells)
        for one in answers
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, rounded; None if there is none."""
    known = [value for value in values if value is not None]
    return round(mean(known), 6) if known else None


def _mean_interval(values: Sequence[float | None], texts: list[int] | None) -> Interval | None:
    known = [value for value in values if value is not None]
    bounds = mean_interval(known, texts) if known else None
    return _rounded(bounds) if bounds else None


def _rounded(bounds: Interval) -> Interval:
    return round(bounds[0], 6), round(bounds[1], 6)
