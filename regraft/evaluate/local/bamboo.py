"""BAMBOO (arXiv 2309.13345) from its own files: altqa_4k.jsonl, paperqa_16k.jsonl and so on.

A text that is too long loses its middle. The score of its yes-or-no tasks is accuracy, item by
item; precision, recall and F1, as in the paper, are given for each cell. Code completion
(private_eval) is left out, because scoring it runs a model's code. The wording of the prompts is
ours, except for altqa, whose texts contain their question.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from regraft.errors import InputError
from regraft.evaluate.local.cases import Case, entries, files, task
from regraft.evaluate.tasks import Task
from regraft.input_files import JsonObject

_ANSWER_TOKENS = 32  # tokens of an answer, as in the paper's own runs
_DOCUMENT = re.compile(r"(.*?Document:\n)(.*?)((?:\n\nQuestion:\n.*)?)\s*", re.DOTALL)


def _case(before: str, text: str, after: str, answer: str, *, question: str = "") -> Case:
    return Case(before, text, after, "\n\nAnswer:", (answer,), question or after.strip(), ends=True)


def _altqa(entry: JsonObject) -> Case:
    parts = _DOCUMENT.fullmatch(entry["content"])
    before, text, after = parts.groups() if parts else ("", entry["content"], "")
    return _case(before, text, f"{after}\n\nAnswer with a number alone.", entry["answer"])


def _choice(entry: JsonObject) -> Case:
    options = "\n".join(entry["options"])
    after = (
        f"\n\nQuestion: {entry['question']}\n{options}\n\n"
        "Answer with the letter of the right option alone."
    )
    return _case("Read this text.\n\n", entry["content"], after, entry["answer"])


def _hypothesis(entry: JsonObject) -> Case:
    after = (
        f"\n\nStatement: {entry['hypothesis']}\n\nIs all of the statement so according to the "
        "paper? Answer with yes or no alone."
    )
    expected = "yes" if entry["answer"] else "no"
    return _case("Read this paper.\n\n", entry["content"], after, expected)


def _speaker(entry: JsonObject) -> Case:
    after = "\n\nWho of those named above said the last line? Answer with the name alone."
    return _case("Read this conversation.\n\n", entry["content"].rstrip(), after, entry["answer"])


def _sorted(entry: JsonObject) -> Case:
    after = f"\n\n{_ask('parts')}"
    before = "These are the parts of one text in a wrong order.\n\n"
    return _case(before, _numbered(entry["content"]), after, _order(entry))


def _events(entry: JsonObject) -> Case:
    after = f"\n\nEvents in a wrong order:\n{_numbered(entry['summaries'])}\n\n{_ask('events')}"
    return _case("Read this report.\n\n", entry["content"], after, _order(entry))


def _numbered(parts: list[str]) -> str:
    return "\n".join(f"[{number}] {part.strip()}" for number, part in enumerate(parts))


def _ask(what: str) -> str:
    return f"In which order do the {what} stand in the text? Answer with all numbers: [n] > [n] ..."


def _order(entry: JsonObject) -> str:
    return " > ".join(f"[{number}]" for number in entry["answer"])


_CHOICE = (_choice, "letter", ("content", "question", "options", "answer"))
_HYPOTHESIS = (_hypothesis, "verdict", ("content", "hypothesis", "answer"))
_SPEAKER = (_speaker, "same", ("content", "answer"))
_TASKS: dict[str, tuple[Callable[[JsonObject], Case], str, tuple[str, ...]]] = {
    "altqa": (_altqa, "same", ("content", "answer")),
    "meetingqa": _CHOICE, "paperqa": _CHOICE, "senhallu": _HYPOTHESIS, "abshallu": _HYPOTHESIS,
    "meetingpred": _SPEAKER, "showspred": _SPEAKER,
    "showssort": (_sorted, "order", ("content", "answer")),
    "reportsumsort": (_events, "order", ("content", "summaries", "answer")),
}  # fmt: skip


def read(path: str) -> list[Task]:
    """A task for each file of a dataset. Raises InputError for files of another layout."""
    tasks = []
    for file in files("bamboo", path):
        kind = file.stem.split("_")[0]
        if kind in _TASKS:
            make, scorer, needed = _TASKS[kind]
            try:
                cases = [make(entry) for entry in entries("bamboo", file, needed)]
            except (TypeError, AttributeError) as error:
                raise InputError(f"{file} is not of BAMBOO's layout: {error}.") from None
            if not cases:
                raise InputError(f"{file} has no question; give another file of BAMBOO's.")
            tasks.append(task(f"bamboo_{file.stem}", cases, scorer, _ANSWER_TOKENS))
    if not tasks:
        raise InputError(
            f"--suite bamboo:{path} has no file of a task; their names start with "
            f"{', '.join(_TASKS)}."
        )
    return tasks
