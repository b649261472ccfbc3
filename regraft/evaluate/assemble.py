"""The record of an evaluation, from answers and measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from regraft.evaluate.answers import lm_eval
from regraft.evaluate.answers.served.source import ServedSource
from regraft.evaluate.prepare import ROLES, Evaluated, Work
from regraft.evaluate.report.aggregate import Answers, fidelity_ratios, summarise, transfer_ratios
from regraft.evaluate.result import (
    EvaluatedModel,
    EvaluatedTask,
    EvaluationRecord,
    FidelityRecord,
    Measures,
    Sample,
)
from regraft.evaluate.shared_output import read_lines
from regraft.evaluate.tasks import Item
from regraft.records import versions
from regraft.units import format_tokens


def assemble_record(
    work: Work,
    items: Mapping[tuple[str, int], Path],
    answers: Answers,
    measures: Mapping[str, Measures],
    matrix: bool,
) -> EvaluationRecord:
    """result.json. items: the file of every task and length; answers: of every cell; measures: of
    every model."""
    names = [source.name for source in work.sources]
    summary = summarise(answers, work.tasks, names)
    grafts = [point.name for point in work.settings.grafts]
    roles = [name for name in names if name in (*ROLES, *grafts)]
    return EvaluationRecord(
        matrix=matrix,
        models={source.name: _model(work, source) for source in work.sources},
        settings=dataclasses.replace(work.settings, lengths=tuple(work.lengths)),
        tasks={
            task.name: EvaluatedTask(
                skill=task.skill,
                scorer=task.scorer,
                judged=task.judged,
                scoring=work.scoring(task),
            )
            for task in work.tasks
        },
        cells=summary.cells,
        overall=summary.overall,
        overall_tasks=summary.overall_tasks,
        effective_length=summary.effective_length,
        long_score=summary.long_score,
        measures={
            name: dataclasses.replace(measured, lm_eval=None) for name, measured in measures.items()
        },
        published=lm_eval.summarise(measures, matrix),
        samples=_samples(items, answers, names),
        versions=versions(),
        ratios=transfer_ratios(answers, work.tasks, roles, work.own_length) if matrix else None,
        fidelity=_fidelity(work, answers),
    )


def _model(work: Work, source: Evaluated) -> EvaluatedModel:
    if isinstance(source, ServedSource):
        return EvaluatedModel(
            place=source.location,
            fingerprint="",
            context="a served model, "
            + (
                f"at most {format_tokens(source.limit)} tokens" if source.limit else "of any length"
            ),
            context_length=source.limit or max(work.lengths),
            endpoint=source.record(),
        )
    context = work.contexts[source.name]
    return EvaluatedModel(
        place=str(source.location),
        fingerprint=source.fingerprint(),
        context=context.describe(),
        context_length=context.max_position_embeddings,
    )


def _fidelity(work: Work, answers: Answers) -> FidelityRecord | None:
    if work.fidelity is None:
        return None
    base, donor, adapters = work.fidelity.base, work.fidelity.donor, work.fidelity.adapters
    ratios = fidelity_ratios(answers, work.tasks, base, donor, list(adapters))
    return FidelityRecord(base=base, donor=donor, adapters=adapters, ratios=ratios)


def _samples(
    items: Mapping[tuple[str, int], Path], answers: Answers, names: list[str]
) -> list[Sample]:
    """The first item of every task at its shortest length, with every model's answer."""
    samples: dict[str, Sample] = {}
    for (task, length), path in items.items():
        if task not in samples:
            first = Item.from_json(read_lines(path)[0])
            samples[task] = Sample(
                task=task, length=length, prompt=first.prompt, twin=first.twin,
                references=first.references,
                answers={
                    name: answers[name, task, length][0]
                    for name in names
                    if (name, task, length) in answers
                },
            )  # fmt: skip
    return list(samples.values())
