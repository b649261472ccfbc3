"""RULER's question tasks: which documents stand beside the evidence, and the cleaner variants."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from evaluated import text_tokenizer

from regraft.errors import InputError
from regraft.evaluate.prompts.haystack import Grammar
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.suites import TASKS
from regraft.evaluate.tasks import Item, Kit, score_text
from regraft.evaluate.tasks.quiz import read_quiz
from regraft.evaluate.tasks.ruler.questions import INSTRUCTION

PARAGRAPHS = 6  # of an article


def squad(folder: Path, articles: int = 15) -> Path:
    """Each article has a question on every paragraph; all of an article name its answers."""
    data = []
    for article in range(articles):
        founder = f"Berit{article}"
        paragraphs = [
            {
                "context": f"Article {article} part {part}. Alba was founded by {founder}. " * 2,
                "qas": [
                    {"question": f"Who founded {article}?", "answers": [{"text": founder}] * 3},
                    {"question": "Why?", "answers": [], "is_impossible": True},
                ],
            }
            for part in range(PARAGRAPHS)
        ]
        data.append({"paragraphs": paragraphs})
    path = folder / "squad.json"
    path.write_text(json.dumps({"data": data}))
    return path


def hotpot(folder: Path, questions: int = 12) -> Path:
    entries = [
        {
            "question": f"Which river {number}?",
            "answer": "yes" if number == 1 else f"Ister{number}",
            "context": [
                [f"Title {number} {part}",
                 [f"Part {part} ", f"is the Ister{number}." if part < 2 else f"of {number}."]]
                for part in range(10)
            ],
            "supporting_facts": [[f"Title {number} 0", 0], [f"Title {number} 1", 0]],
        }
        for number in range(questions)
    ]  # fmt: skip
    path = folder / "hotpot.json"
    path.write_text(json.dumps(entries))
    return path


def kit_of(path: Path) -> Kit:
    quiz = read_quiz(path)
    return Kit(Prompter(text_tokenizer()), Grammar(), questions=[quiz, quiz])


def documents(item: Item, *, twin: bool = False) -> list[str]:
    body = (item.twin if twin else item.prompt).split(INSTRUCTION)[1]
    return [text.rstrip("\n") for text in re.split(r"(?:\n\n|^)Document \d+:\n", body)[1:]]


def test_distractors_come_from_the_same_article_first(tmp_path: Path) -> None:
    kit = kit_of(squad(tmp_path))
    for length, beyond in ((250, False), (900, True)):
        item = TASKS["qa_1"].item(kit, length, 7)  # question 7 of the file: article 1, part 1
        assert item.details.question == "Who founded 1?"
        assert item.references == ["Berit1"]
        texts = documents(item)
        assert any(text.startswith("Article 1 part 1.") for text in texts)
        of_article = [text for text in texts if text.startswith("Article 1 ")]
        assert (len(texts) > PARAGRAPHS) is beyond
        assert len(of_article) == (PARAGRAPHS if beyond else len(texts))
        assert len(set(texts)) == len(texts)


def test_documents_with_the_answer_stay_and_leave_only_the_twin(tmp_path: Path) -> None:
    kit = kit_of(squad(tmp_path))
    item = TASKS["qa_1"].item(kit, 900, 3)
    assert sum("Berit0" in text for text in documents(item)) == PARAGRAPHS
    assert "Berit0" not in item.twin
    assert len(documents(item, twin=True)) == len(documents(item))
    assert score_text(TASKS["qa_1"].solve(item.prompt)[0], item.references, "part") == 1
    assert score_text(TASKS["qa_1"].solve(item.twin)[0], item.references, "part") == 0


def test_hotpot_questions_carry_their_ten_paragraphs_and_yes_no_questions_stay(
    tmp_path: Path,
) -> None:
    kit = kit_of(hotpot(tmp_path))
    yes = TASKS["qa_2"].item(kit, 700, 1)
    assert yes.references == ["yes"]
    for number in (0, 1, 5):
        item = TASKS["qa_2"].item(kit, 700, number)
        texts = documents(item)
        own = [text for text in texts if text.startswith(f"Title {number} ")]
        assert len(own) == 10
        assert len(texts) > 10
        assert not any(f"Ister{number}." in text for text in documents(item, twin=True))
    twin = documents(yes, twin=True)
    assert not any(text.startswith(("Title 1 0", "Title 1 1\n")) for text in twin)
    assert any(text.startswith("Title 1 5") for text in twin)


def test_question_files_are_never_repeated_to_fill_a_length(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"qa_1 is too short: 90 documents"):
        TASKS["qa_1"].item(kit_of(squad(tmp_path)), 50_000, 0)


def test_clean_questions_have_no_answer_outside_their_documents(tmp_path: Path) -> None:
    kit = kit_of(hotpot(tmp_path, 30))
    seen = set()
    for number in range(29):
        item = TASKS["qa_clean_2"].item(kit, 700, number)
        texts = documents(item)
        answer = item.references[0]
        assert answer != "yes"
        assert sum(f"{answer}." in text for text in texts) == 2
        assert answer not in item.twin
        seen.add(item.details.question)
    assert len(seen) == 29  # all but the yes/no question, in an order of its own


def test_hard_questions_stand_among_the_documents_nearest_to_them(tmp_path: Path) -> None:
    paragraphs = [
        {
            "context": f"The town of Alba{n} was founded by Berit{n} in the year {1500 + n}. " * 3,
            "qas": [{"question": f"Who founded Alba{n}?", "answers": [{"text": f"Berit{n}"}]}],
        }
        for n in range(100, 190)
    ]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    quiz = read_quiz(path)
    for number in range(40):
        text = f"Nobody knows who founded Alba{103 + number}, not even there. " * 3
        quiz.documents[number] = text
    kit = Kit(Prompter(text_tokenizer()), Grammar(), questions=[quiz])
    for number in range(5):
        clean, hard = (TASKS[f"qa_{kind}_1"].item(kit, 2048, number) for kind in ("clean", "hard"))
        assert clean.details == hard.details  # the same question
        assert score_text(TASKS["qa_hard_1"].solve(hard.prompt)[0], hard.references, "part") == 1
        assert score_text(TASKS["qa_hard_1"].solve(hard.twin)[0], hard.references, "part") == 0
        assert hard.prompt.count("Nobody knows") > 1.5 * clean.prompt.count("Nobody knows")
        (name,) = re.findall(r"Alba\d+", hard.details.question)
        if int(name[4:]) in range(103, 143):
            assert f"Nobody knows who founded {name}," in hard.prompt


def one_question(**question: Any) -> str:
    """SQuAD's JSON with one document and one question."""
    entry = {"question": "Which river?", "answers": [{"text": "Ister"}], **question}
    return json.dumps({"data": [{"paragraphs": [{"context": "The Ister.", "qas": [entry]}]}]})


def test_broken_question_files_are_explained(tmp_path: Path) -> None:
    entry: dict[str, Any] = {
        "question": "Which river?", "answer": "Ister",
        "context": [["A", ["The town lies ", "on B."]], ["B", ["B is the Ister."]], ["C", ["No."]]],
        "supporting_facts": [["A", 0], ["B", 0]],
    }  # fmt: skip
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps([entry, {**entry, "answer": "yes"}]))
    first, second = read_quiz(path).questions
    assert (len(first.supporting), len(first.context)) == (2, 3)
    assert second.answers == ("yes",)
    unanswered = json.dumps([{**entry, "answer": None}])
    for broken in ("[1]", '{"data": [{}]}', unanswered):
        path.write_text(broken)
        with pytest.raises(InputError, match=r"--qa.*neither"):
            read_quiz(path)
    for broken, message in (
        ("{", "hotpot.json is not valid JSON"),
        ("[" * 100_000, "nested too deep"),
        (json.dumps([{**entry, "question": "\ud800?"}]), "half of a surrogate pair"),
        ('{"data": []}', "no question with an answer"),
        ("[]", "no question with an answer"),
        (one_question(is_impossible=True), "no question with an answer"),
        (one_question(), "has 1 document; give a file with two or more"),
    ):
        path.write_text(broken)
        with pytest.raises(InputError, match=message) as caught:
            read_quiz(path)
        assert "\n" not in str(caught.value)
    path.write_text(json.dumps([{**entry, "answer": "yes"}]))
    kit = Kit(Prompter(text_tokenizer()), Grammar(), questions=[read_quiz(path)])
    with pytest.raises(InputError, match="no question whose answer is in"):
        TASKS["qa_clean_1"].item(kit, 500, 0)
