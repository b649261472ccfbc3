"""The derivative's skill as a task of `regraft evaluate`: five words in reverse order.

It is found by its entry point, as a task of any installed package: `install` writes the metadata
of such a package into a folder for PYTHONPATH.
"""

from __future__ import annotations

import re
from pathlib import Path

from regraft.evaluate.tasks import Draft, Kit, Task
from smollm2.corpus import skill_sentence

_QUESTION = re.compile(r"The words ([^.]*) in reverse order are$")


def _make(kit: Kit, budget: int, number: int) -> Draft:
    return _make_group(kit, budget, number, 1)[0]


def _make_group(kit: Kit, budget: int, text: int, questions: int) -> list[Draft]:
    """Questions after one text. A twin lists other words, so its answer is not the reference's."""
    rng = kit.rng("reversal", text)
    pairs = [(skill_sentence(rng), skill_sentence(rng)) for _ in range(questions)]
    endings = [tuple(one[: one.index(" are ") + 4] for one, _ in pair) for pair in pairs]

    def build(units: int) -> str:
        return "".join(kit.haystack.pieces(f"reversal {text}", units)).rstrip() + "\n"

    questions_and_twins = [(ending, "") for pair in endings for ending in pair]
    haystack = build(kit.fit_text("reversal", build, budget, questions_and_twins))
    return [
        Draft(haystack + question, haystack + twin, (answer,))
        for (question, twin), ((_, answer), _) in zip(endings, pairs, strict=True)
    ]


def solve(prompt: str) -> list[str]:
    """The words of the last sentence, backwards."""
    match = _QUESTION.search(prompt)
    return [", ".join(reversed(match[1].split(", ")))] if match else []


REVERSAL = Task("reversal", _make, solve, answer_tokens=32, skill=True, make_group=_make_group)


def install(folder: Path) -> None:
    """Make the task an entry point of every Python that has `folder` on its path."""
    info = folder / "smollm2_reversal-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: smollm2-reversal\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[regraft.tasks]\nreversal = smollm2.reversal:REVERSAL\n"
    )
