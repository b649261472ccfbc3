"""Tasks from questions about texts written by people.

A text that is too long for the evaluated length is truncated; `text_share` records which share of
its words remained. Its twin is the question with no text at all: what scores there was known
before. No simple program answers such questions, so these tasks have no oracle. All answers are
generated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from regraft.errors import InputError
from regraft.evaluate.tasks import Draft, ItemDetails, Kit, Task
from regraft.evaluate.tasks import text_scores as metrics
from regraft.input_files import JsonObject, parse_json, read_lines

_WORD = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True)
class Case:
    """A prompt is before + text + after + prefix (the beginning of the answer). question: for the
    judge. ends: a text that is too long loses its middle, otherwise its end, where `omitted` is
    inserted."""

    before: str
    text: str
    after: str
    prefix: str
    references: tuple[str, ...]
    question: str
    omitted: str = ""
    ends: bool = False


def task(
    name: str, cases: Sequence[Case], scorer: str, answer_tokens: int, *, judged: bool = False
) -> Task:
    """The task of all cases; see `Task`.

    Raises InputError if the scorer's library is not installed."""
    metrics.check([scorer], name)
    return Task(
        name, partial(_make, name, cases), _no_oracle, answer_tokens, scorer, "generate",
        haystack=False, max_items=len(cases), judged=judged,
    )  # fmt: skip


def _make(name: str, cases: Sequence[Case], kit: Kit, budget: int, number: int) -> Draft:
    order = list(range(len(cases)))
    kit.rng(name).shuffle(order)
    case = cases[order[number % len(order)]]
    words = _WORD.findall(case.text)

    def build(units: int) -> str:
        return f"{case.before}{_cut(case, words, units)}{case.after}"

    units = len(words)
    if kit.prompter.count(kit.prompter.wrap(build(units), case.prefix)) > budget:
        units = kit.fit(name, lambda n: build(min(n, len(words))), budget, case.prefix)
    share = round(units / max(1, len(words)), 4)
    details = ItemDetails(question=case.question, text_share=share)
    twin = f"{case.before}{case.after}"
    return Draft(build(units), twin, case.references, case.prefix, details=details)


def _cut(case: Case, words: list[str], units: int) -> str:
    if units >= len(words):
        return case.text
    first = units - units // 2 if case.ends else units
    last = words[len(words) - (units - first) :] if units > first else []
    return "".join((*words[:first], case.omitted, *last))


def _no_oracle(_prompt: str) -> list[str]:
    return []


def files(suite: str, path: str) -> list[Path]:
    """The .jsonl file, or all of them in the folder, sorted by name. Raises InputError if there is
    none."""
    root = Path(path).expanduser()
    result = [root] if root.is_file() else sorted(root.rglob("*.jsonl"))
    if not result:
        raise InputError(
            f"--suite {suite}:{path} has no .jsonl file; give the suite's folder, unzipped, or "
            "one of its files."
        )
    return result


def entries(suite: str, path: Path, required: Sequence[str]) -> list[JsonObject]:
    """The file's objects. Raises InputError naming the line that lacks a required field."""
    result = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        remedy = f"give --suite {suite} its own files"
        entry = parse_json(line, f"{path} line {number}", remedy=remedy)
        missing = [name for name in required if not isinstance(entry, dict) or name not in entry]
        if not isinstance(entry, dict) or missing:
            raise InputError(
                f"{path} line {number} lacks {', '.join(missing) or 'fields'}, so it is not of "
                f"--suite {suite}'s layout."
            )
        result.append(entry)
    return result
