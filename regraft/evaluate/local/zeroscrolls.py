"""ZeroSCROLLS (arXiv 2305.14196) from its own files: a folder for each task with validation.jsonl.

The prompts are the files' own: `input`, of which document_start_index to document_end_index is the
document. A document that is too long loses its end, and `truncation_seperator` says so, as in the
paper. Lines of one id are one question with several answers. The answers of the test files are not
published; these lines are left out.
"""

from __future__ import annotations

from pathlib import Path

from regraft.errors import InputError
from regraft.evaluate.local.cases import Case, entries, files, task
from regraft.evaluate.tasks import Task
from regraft.input_files import JsonObject

_FIELDS = (
    "id", "input", "output", "document_start_index", "document_end_index", "truncation_seperator",
)  # fmt: skip
# scorer, and tokens of an answer as in the paper's own runs
_TASKS = {
    "gov_report": ("rouge", 1024), "summ_screen_fd": ("rouge", 512), "qmsum": ("rouge", 512),
    "squality": ("rouge", 512), "qasper": ("f1", 128), "narrative_qa": ("f1", 64),
    "musique": ("f1", 32), "quality": ("letter", 10), "space_digest": ("percentage", 36),
    "book_sum_sort": ("order", 256),
}  # fmt: skip


def read(path: str) -> list[Task]:
    """A task for each dataset in `path`. Raises InputError where none has answers."""
    cases_of: dict[str, list[Case]] = {}
    for file in files("zeroscrolls", path):
        if name := _name(file):
            cases_of.setdefault(name, []).extend(_cases(file))
    if not cases_of:
        raise InputError(
            f"--suite zeroscrolls:{path} has no file of a task; it or its folder must be named "
            f"{', '.join(_TASKS)}."
        )
    tasks = {name: cases for name, cases in cases_of.items() if cases}
    if not tasks:
        raise InputError(
            f"--suite zeroscrolls:{path} has no answers: those of the test files are not "
            "published; give the validation files."
        )
    return [
        task(f"zeroscrolls_{name}", cases, *_TASKS[name], judged=_TASKS[name][0] in ("f1", "rouge"))
        for name, cases in tasks.items()
    ]


def _name(path: Path) -> str | None:
    for part in (path.stem, path.parent.name):
        for name in _TASKS:
            if part == name or part.startswith(f"{name}_"):
                return name
    return None


def _cases(path: Path) -> list[Case]:
    grouped: dict[str, list[JsonObject]] = {}
    for entry in entries("zeroscrolls", path, _FIELDS):
        if entry["output"] is not None:
            grouped.setdefault(entry["id"], []).append(entry)
    try:
        return [_case(same) for same in grouped.values()]
    except (TypeError, AttributeError) as error:
        raise InputError(f"{path} is not of ZeroSCROLLS' layout: {error}.") from None


def _case(same: list[JsonObject]) -> Case:
    first = same[0]
    text, start, end = first["input"], first["document_start_index"], first["document_end_index"]
    # the header of the answer comes last, after a blank line: 'Answer:'
    query, blank, header = text[end:].rstrip().rpartition("\n\n")
    return Case(
        text[:start], text[start:end], query, f"{blank}{header}\n",
        tuple(dict.fromkeys(entry["output"] for entry in same)),
        query.strip() or text[:start].strip(), first["truncation_seperator"].rstrip(),
    )  # fmt: skip
