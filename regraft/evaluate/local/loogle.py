"""LooGLE (arXiv 2311.04939) from its own files: longdep_qa.jsonl, shortdep_qa.jsonl and so on.

Read in the layout of the first release (`input`, `qa_pairs`, `output`) and in that of the Hub
(`context`, `question`, `answer`). A text that is too long loses its middle, as in the paper's own
runs. Each task has one of its metrics; its verdicts by a model correspond to --judge. The wording
of the prompts is ours.
"""

from __future__ import annotations

from pathlib import Path

from regraft.errors import InputError
from regraft.evaluate.local.cases import Case, entries, files, task
from regraft.evaluate.tasks import Task
from regraft.evaluate.tasks.text_scores import parse_literal
from regraft.input_files import JsonObject

# scorer, tokens of an answer as in the paper's own runs, instruction
_QUESTION = "Read the text below and answer the question that follows it.\n\n"
_SUMMARY = "Read the paper below and summarise it.\n\n"
_CLOZE = (
    "Read the text below. In the sentences that follow it, names are masked as <mask-0>, <mask-1> "
    "and so on, the same name by the same mask. Answer with a dictionary of the names alone, such "
    "as {'<mask-0>': 'Anna', '<mask-1>': 'Rome'}.\n\n"
)
_TASKS = {
    "shortdep_qa": ("rouge_l", 300, _QUESTION), "longdep_qa": ("rouge_l", 500, _QUESTION),
    "shortdep_cloze": ("cloze", 50, _CLOZE), "longdep_summarization": ("rouge_l", 500, _SUMMARY),
    "summarization": ("rouge_l", 500, _SUMMARY),
}  # fmt: skip


def read(path: str) -> list[Task]:
    """A task for each dataset in `path`. Raises InputError for files of another layout."""
    tasks = []
    for file in files("loogle", path):
        if file.stem in _TASKS:
            scorer, answer_tokens, _ = _TASKS[file.stem]
            cases = [case for entry in entries("loogle", file, ()) for case in _cases(file, entry)]
            if not cases:
                raise InputError(f"{file} has no question; give another file of LooGLE's.")
            name = f"loogle_{file.stem}"
            tasks.append(task(name, cases, scorer, answer_tokens, judged=scorer == "rouge_l"))
    if not tasks:
        raise InputError(
            f"--suite loogle:{path} has no file of a task; these are named "
            f"{', '.join(f'{name}.jsonl' for name in _TASKS)}."
        )
    return tasks


def _cases(path: Path, entry: JsonObject) -> list[Case]:
    instruction = _TASKS[path.stem][2]
    try:
        text = entry["context"] if "context" in entry else entry["input"]
        if instruction == _SUMMARY:
            answer = entry["answer"] if "answer" in entry else entry["output"]
            pairs = [("", answer)]
        elif "question" in entry and "answer" in entry:
            pairs = [(entry["question"], entry["answer"])]
        else:
            listed = entry["qa_pairs"]
            listed = parse_literal(listed) if isinstance(listed, str) else listed
            pairs = [(pair["Q"], pair["A"]) for pair in listed]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} has neither of LooGLE's layouts ({error!r}): input with qa_pairs, or context "
            "with question and answer."
        ) from None
    return [
        Case(
            instruction, text, f"\n\nQuestion: {question}" if question else "",
            "\n\nSummary:" if instruction == _SUMMARY else "\nAnswer:", (str(answer),),
            question or instruction.strip(), ends=True,
        )
        for question, answer in pairs
    ]  # fmt: skip
