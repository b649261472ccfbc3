"""RULER's published scores of the Llama 3 family, for orientation beside our own scores.

From the table in RULER's README (github.com/NVIDIA/RULER, read on 2026-07-22): percent, the mean of
13 tasks with 500 items each, chat models under their templates, and the length up to which 85.6 is
reached. Harnesses differ by more than models do: ProLong-8B at 128k is 81.6 there and 71.9 in its
own paper (arXiv 2410.02660).
"""

from __future__ import annotations

from regraft.evaluate.report.transfer import effective_length
from regraft.evaluate.result import EvaluationRecord
from regraft.evaluate.statistics import mean
from regraft.evaluate.suites import RULER
from regraft.units import format_tokens

SOURCE = "RULER's README, github.com/NVIDIA/RULER, 2026-07-22"
LENGTHS = tuple(1024 * k for k in (4, 8, 16, 32, 64, 128))
PUBLISHED: dict[str, tuple[tuple[float, ...], str]] = {
    "Llama-3.1-70B": ((96.5, 95.8, 95.4, 94.8, 88.4, 66.6), "64k"),
    "Llama-3.1-8B": ((95.5, 93.8, 91.6, 87.4, 84.7, 77.0), "32k"),
    "ProLong-8B-512k": ((94.5, 92.5, 92.3, 89.3, 83.2, 81.6), "32k"),
    "Gradient Llama-3-70B-1048k": ((95.1, 94.4, 90.8, 85.4, 80.9, 72.1), "16k"),
    "Gradient Llama-3-8B-1048k": ((92.8, 90.3, 85.7, 79.9, 76.3, 69.5), "16k"),
}


def compare_with_published(result: EvaluationRecord) -> list[list[str]]:
    """A table with a header row: our models' means of RULER's 13 tasks, then the published ones.
    Empty unless all 13 were run at a common length."""
    names = [task.name for task in RULER]
    rows = []
    for model, tasks in result.cells.items():
        if not all(name in tasks for name in names):
            continue
        means = {
            length: mean([tasks[name][length].score for name in names])
            for length in tasks[names[0]]
            if all(length in tasks[name] for name in names)
        }
        if not means:
            return []
        reached = effective_length(means).ruler
        rows.append(
            [
                f"{model}, here",
                *(f"{100 * means[n]:.1f}" if n in means else "" for n in LENGTHS),
                format_tokens(reached) if reached else "none",
            ]
        )
    head = ["percent", *map(format_tokens, LENGTHS), "effective"]
    published = [
        [name, *(f"{score:.1f}" for score in scores), reached]
        for name, (scores, reached) in PUBLISHED.items()
    ]
    return [head, *rows, *published] if rows else []
