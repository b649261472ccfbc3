"""The tables of a report, for the screen, the card and the page: titles and cells as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from regraft.evaluate.report.ruler_published import compare_with_published
from regraft.evaluate.result import (
    Cell,
    EvaluationRecord,
    Interval,
    Measures,
    Perplexity,
    PublishedSuites,
)
from regraft.evaluate.statistics import Ratio
from regraft.units import format_tokens

Rows = list[list[str]]  # the first is the header
Value = TypeVar("Value")
_BY_LENGTH = ", by length in tokens"
MANY_TASKS = 4  # with more, summaries are more readable than a table for each


def tables(result: EvaluationRecord, *, brief: bool = False) -> list[tuple[str, Rows]]:
    """(title, rows) of every table, summaries first. brief: instead of a table for each task, one
    for all at each task's greatest length."""
    summaries: list[tuple[str, Rows]] = []
    single: list[tuple[str, Rows]] = []
    if brief:
        summaries.append(("Share answered, at the greatest length", _all_tasks(result)))
    for task in result.tasks:
        cells = cells_of(result, task)
        if cells and not brief:
            single.append((f"{task}: share answered{_BY_LENGTH}", _task(result, task)))
            first = next(iter(cells.values()))
            if first.precision is not None:
                title = f"{task}: precision / recall / F1{_BY_LENGTH}"
                single.append((title, _detection(result, task)))
            if result.settings.judge and result.tasks[task].judged:
                title = f"{task}: share the judge agrees with{_BY_LENGTH}"
                single.append((title, _judge(result, task)))
    names = result.overall_tasks
    if len(names) > 1:
        listed = ", ".join(names) if len(names) <= MANY_TASKS else f"{len(names)} tasks"
        summaries.append((f"Mean over {listed}{_BY_LENGTH}", _overall(result)))
    if result.effective_length:
        summaries.append(("Effective length in tokens", _effective_length(result)))
    if any(result.long_score.values()):
        title = f"LongScore: change relative to short lengths{_BY_LENGTH}"
        summaries.append((title, _long_score(result)))
    if published := compare_with_published(result):
        summaries.append(("RULER: published, not comparable item by item", published))
    for task, ratios in _all_first(result.ratios or {}):
        if not brief or task == "all":
            summaries.append((f"Carried over: {task}", _transfer(ratios)))
    for task, ratios in _all_first(result.fidelity.ratios if result.fidelity else {}):
        if not brief or task == "all":
            summaries.append((f"Extraction fidelity: {task}{_BY_LENGTH}", _fidelity(ratios)))
    suites = _published_suites(result.published)
    return [*summaries, *single, *_perplexity(result.measures), *_drift(result.measures), *suites]


def cells_of(result: EvaluationRecord, task: str) -> dict[int, Cell]:
    """The first model's cells of a task by length; every model that was examined has the same."""
    first = next(iter(result.models))
    return result.cells.get(first, {}).get(task, {})


def format_ratio(ratio: Ratio | None) -> str:
    """'0.50 [0.41, 0.60]', or 'n/a'."""
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else "n/a"


def _all_first(ratios: Mapping[str, Value]) -> list[tuple[str, Value]]:
    return sorted(ratios.items(), key=lambda entry: entry[0] != "all")


def _task(result: EvaluationRecord, task: str) -> Rows:
    """Scores with intervals, and the highest score of the twins."""

    def score(cell: Cell) -> str:
        low, high = cell.interval
        return f"{cell.score:.2f} [{low:.2f}, {high:.2f}]"

    rows = _by_model(result, task, score)
    if not result.settings.twins:
        return rows
    rows[0].append("twins")
    for row in rows[1:]:
        cells = result.cells[row[0]][task].values()
        row.append(f"{max(cell.twin for cell in cells if cell.twin is not None):.2f}")
    return rows


def _judge(result: EvaluationRecord, task: str) -> Rows:
    def share(cell: Cell) -> str:
        return "n/a" if cell.judge is None else f"{cell.judge:.2f}"

    return _by_model(result, task, share)


def _detection(result: EvaluationRecord, task: str) -> Rows:
    def figures(cell: Cell) -> str:
        return f"{cell.precision:.2f} / {cell.recall:.2f} / {cell.f1:.2f}"

    return _by_model(result, task, figures)


def _by_model(result: EvaluationRecord, task: str, text: Callable[[Cell], str]) -> Rows:
    """A row for each model that was examined, a column for each length."""
    lengths = list(cells_of(result, task))
    return [["model", *map(format_tokens, lengths)]] + [
        [model, *(text(cells[task][length]) for length in lengths)]
        for model, cells in result.cells.items()
        if task in cells
    ]


def _all_tasks(result: EvaluationRecord) -> Rows:
    """A row for each task, a column for each model."""
    rows = [["task", "tokens", *result.models]]
    for task in result.tasks:
        for length in list(cells_of(result, task))[-1:]:
            cells = [
                result.cells.get(model, {}).get(task, {}).get(length) for model in result.models
            ]
            scores = ["not supported" if cell is None else f"{cell.score:.2f}" for cell in cells]
            rows.append([task, format_tokens(length), *scores])
    return rows


def _overall(result: EvaluationRecord) -> Rows:
    lengths = list(next(iter(result.overall.values())))
    return [["model", *map(format_tokens, lengths)]] + [
        [model, *(f"{scores[length]:.2f}" for length in lengths)]
        for model, scores in result.overall.items()
    ]


def _effective_length(result: EvaluationRecord) -> Rows:
    def text(length: int | None) -> str:
        return "none" if length is None else format_tokens(length)

    return [["model", "at 85.6%", "at 85% of its own"]] + [
        [model, text(length.ruler), text(length.own)]
        for model, length in result.effective_length.items()
    ]


def _long_score(result: EvaluationRecord) -> Rows:
    """A row for each model, a column for each long length."""
    lengths = list(next(iter(result.long_score.values())))
    return [["model", *map(format_tokens, lengths)]] + [
        [model, *(format_ratio(scores[length]) for length in lengths)]
        for model, scores in result.long_score.items()
    ]


def _transfer(by_length: Mapping[int, Mapping[str, Ratio | None]]) -> Rows:
    """A row for each length, a column for each ratio."""
    names = list(dict.fromkeys(name for ratios in by_length.values() for name in ratios))
    return [["tokens", *names]] + [
        [
            format_tokens(length),
            *(format_ratio(ratios[name]) if name in ratios else "" for name in names),
        ]
        for length, ratios in by_length.items()
        if ratios
    ]


def _fidelity(by_length: Mapping[int, Mapping[str, Ratio | None]]) -> Rows:
    """A row for each adapter, a column for each length."""
    names = list(next(iter(by_length.values())))
    return [["model", *map(format_tokens, by_length)]] + [
        [name, *(format_ratio(ratios[name]) for ratios in by_length.values())] for name in names
    ]


def _perplexity(measures: Mapping[str, Measures]) -> list[tuple[str, Rows]]:
    figures = {name: facts.perplexity for name, facts in measures.items() if facts.perplexity}
    if not figures:
        return []
    result: list[tuple[str, Rows]] = []
    first = next(iter(figures.values()))
    if first.nll:
        rows = [[name, *_nll(facts)] for name, facts in figures.items()]
        head = ["model", *first.nll, "mean"]
        result.append(("NLL of plain text by position (nats)", [head, *rows]))
    if first.gain:
        rows = [[name, *_gain(facts)] for name, facts in figures.items()]
        head = ["model", *first.gain]
        result.append(("What context beyond the last tokens is worth (nats)", [head, *rows]))
    rows = [
        [name, f"{x.perplexity:.2f}", f"{x.long_perplexity:.2f}", f"{x.key_share:.2%}"]
        for name, x in figures.items()
        if x.long_perplexity is not None and x.perplexity is not None
    ]
    if rows:
        head = ["model", "perplexity", "of key tokens", "key tokens"]
        result.append(("LongPPL: perplexity of the tokens that need far context", [head, *rows]))
    return result


def _nll(facts: Perplexity) -> list[str]:
    return [*(f"{x:.3f}" for x in facts.nll.values()), _nats(facts.mean, facts.intervals.mean)]


def _gain(facts: Perplexity) -> list[str]:
    return [_nats(value, facts.intervals.gain[window]) for window, value in facts.gain.items()]


def _nats(value: float, bounds: Interval | None) -> str:
    return f"{value:.3f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")


def _drift(measures: Mapping[str, Measures]) -> list[tuple[str, Rows]]:
    drift = {name: facts.drift for name, facts in measures.items() if facts.drift}
    if not drift:
        return []
    rows = [[name, f"{x.kl:.4f}", f"{x.top1:.1%}", f"{x.cosine:.4f}"] for name, x in drift.items()]
    head = ["model", "KL (nats)", "same first choice", "cosine"]
    return [(f"Drift from {next(iter(drift))} on short text", [head, *rows])]


def _published_suites(suites: PublishedSuites) -> list[tuple[str, Rows]]:
    if not suites.scores:
        return []
    tasks = list(next(iter(suites.scores.values())))
    rows = [
        [name, *(f"{scores[task].score:.3f}" for task in tasks)]
        for name, scores in suites.scores.items()
    ]
    result = [("Published suites, by lm-eval", [["model", *tasks], *rows])]
    if suites.retention:
        rows = [
            [name, *(format_ratio(ratios[task]) for task in tasks)]
            for name, ratios in suites.retention.items()
        ]
        result.append(("Retention on them", [["model", *tasks], *rows]))
    return result
