"""result.json from what was measured: a cell for every model, task and length, and the ratios."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from regraft.evaluate.report.transfer import (
    compare,
    effective_length,
    interval,
    mean_interval,
    ratio,
    standard_error,
)
from regraft.evaluate.tasks import Task
from regraft.evaluate.tasks.text_scores import detection

Lines = list[dict[str, Any]]  # of one cell, item by item


def cell(lines: Lines) -> dict[str, Any]:
    """Score, items, interval, twins' score and what the prompts were like; depths where the items
    have one."""
    scores = [line["score"] for line in lines]
    low, high = interval(scores)
    found: dict[str, Any] = {
        "score": round(_mean(scores), 6),
        "items": len(lines),
        "interval": [round(low, 6), round(high, 6)],
        "tokens": round(_mean([line["tokens"] for line in lines]), 1),
        "unique_share": round(_mean([line["unique"] for line in lines]), 4),
    }
    for name in ("nll", "twin", "twin_nll", "kept"):
        if name in lines[0]:
            found[name] = round(_mean([line[name] for line in lines]), 6)
            spread = mean_interval([line[name] for line in lines]) if "nll" in name else None
            if spread is not None:
                found[f"{name}_interval"] = [round(bound, 6) for bound in spread]
    if "judge" in lines[0]:  # of those on which it gave a verdict
        verdicts = [line["judge"] for line in lines if line["judge"] is not None]
        found["judge"] = round(_mean(verdicts), 6) if verdicts else None
        found["judged"] = len(verdicts)
    depths = sorted({line["depth"] for line in lines if line["on_grid"]})
    if depths:
        found["depths"] = {
            f"{depth:.3g}": round(
                _mean([line["score"] for line in lines if line["depth"] == depth]), 6
            )
            for depth in depths
        }
    return found


def summarise(
    found: Mapping[tuple[str, str, int], Lines], tasks: Sequence[Task], models: Sequence[str]
) -> dict[str, Any]:
    """{"cells": model -> task -> length -> cell, "overall": model -> length -> mean over tasks,
    "effective_length": model -> ...} of all lines by (model, task, length).

    Means and effective lengths are over "overall_tasks": no skills, and only what fits in every
    length, so that all lengths have the same tasks.
    """
    cells: dict[str, Any] = {}
    verdicts = [task.name for task in tasks if task.scorer == "verdict"]
    for (model, task, length), lines in found.items():
        made = cell(lines)
        if task in verdicts and "said" in lines[0]:
            made |= detection([line["said"] for line in lines], _scores(lines))
        cells.setdefault(model, {}).setdefault(task, {})[str(length)] = made
    means: dict[str, Any] = {}
    effective: dict[str, Any] = {}
    names, lengths = _together(found, tasks, models[0])
    for model in models if names else ():
        means[model] = {
            str(length): round(_mean([cells[model][t][str(length)]["score"] for t in names]), 6)
            for length in lengths
        }
        by_length = {int(length): score for length, score in means[model].items()}
        shortest = [s for t in names for s in _scores(found[model, t, lengths[0]])]
        effective[model] = effective_length(by_length, standard_error(shortest))
    return {
        "cells": cells, "overall": means, "overall_tasks": names, "effective_length": effective,
    }  # fmt: skip


def ratios(
    found: Mapping[tuple[str, str, int], Lines],
    tasks: Sequence[Task],
    roles: Sequence[str],
    own_length: int,
) -> dict[str, Any]:
    """task (or 'all': those of `overall_tasks` together) -> length -> ratios. own_length: the
    recipient's context."""
    result: dict[str, Any] = {}
    skills = {task.name for task in tasks if task.skill}
    for task, length, scores in _compared(found, tasks, roles):
        result.setdefault(task, {})[str(length)] = compare(
            scores, within=length <= own_length, skill=task in skills
        )
    return result


def kept(
    found: Mapping[tuple[str, str, int], Lines],
    tasks: Sequence[Task],
    base: str,
    donor: str,
    adapted: Sequence[str],
) -> dict[str, Any]:
    """task (or 'all') -> length -> name of the base with an adapter -> its fidelity, see
    `fidelity`. Skills are left out: the donor did not learn them."""
    result: dict[str, Any] = {}
    tasks = [task for task in tasks if not task.skill]
    for task, length, scores in _compared(found, tasks, [base, donor, *adapted]):
        result.setdefault(task, {})[str(length)] = {
            name: ratio(scores[name], scores[base], scores[donor], scores[base]) for name in adapted
        }
    return result


def _compared(
    found: Mapping[tuple[str, str, int], Lines], tasks: Sequence[Task], models: Sequence[str]
) -> Iterator[tuple[str, int, dict[str, list[float]]]]:
    """(task, length, the models' scores item by item) of every cell, then of those that are
    comparable at every length together, as 'all'."""
    lengths = sorted({length for _, _, length in found})
    for task, length in product([task.name for task in tasks], lengths):
        if (models[0], task, length) in found:
            yield task, length, {name: _scores(found[name, task, length]) for name in models}
    together, lengths = _together(found, tasks, models[0])
    for length in lengths if len(together) > 1 else ():
        yield (
            "all", length,
            {name: [s for t in together for s in _scores(found[name, t, length])]
             for name in models},
        )  # fmt: skip


def _together(
    found: Mapping[tuple[str, str, int], Lines], tasks: Sequence[Task], model: str
) -> tuple[list[str], list[int]]:
    """(tasks that are no skills and were measured at every length, the lengths). What has a set
    number of items is left out: its texts are not of the examined length."""
    lengths = sorted({length for _, _, length in found})
    names = [
        task.name
        for task in tasks
        if not task.skill
        and task.most is None
        and all((model, task.name, length) in found for length in lengths)
    ]
    return names, lengths


def _scores(lines: Lines) -> list[float]:
    return [line["score"] for line in lines]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
