"""Prompts: as long as wanted, answerable by whoever reads them, and by nobody else."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated import text_tokenizer, world_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from regraft.data.boundaries import split
from regraft.data.generate.fit import TooShort, fit
from regraft.data.generate.hiding import hide, linear_depths, sigmoid_depths
from regraft.errors import InputError
from regraft.evaluate.prompts.haystack import Fixed, Grammar, open_corpus, unique_share
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.suites import TASKS, choose
from regraft.evaluate.tasks import Kit, Task, score_text

GENERATED = [name for name in TASKS if not name.startswith("qa")]


LENGTHS = {"cwe": (3000, 8000)}  # made-up words take many of this tokenizer's tokens


@pytest.fixture(scope="module")
def kit() -> Kit:
    return Kit(Prompter(text_tokenizer()), Grammar(), needles=1, decoys=2)


@pytest.fixture(scope="module")
def toy() -> Kit:
    return Kit(Prompter(world_tokenizer()), open_corpus("world"))


def fitting(task: str, kit: Kit, toy: Kit) -> Kit:
    return toy if task in ("notes", "shout") else kit


@pytest.mark.parametrize("name", GENERATED)
def test_the_oracle_reads_every_answer_and_none_in_the_twin(name: str, kit: Kit, toy: Kit) -> None:
    task = TASKS[name]
    for length in LENGTHS.get(name, (1024, 4096)):
        for number in range(3):
            item = task.item(fitting(name, kit, toy), length, number)
            said = " ".join(task.solve(item.prompt))
            assert score_text(said, item.references, task.scorer) == 1
            if task.scorer == "all":
                assert not set(task.solve(item.prompt)) - set(item.references)
            assert score_text(item.twin, item.references, task.scorer) == 0
            said = " ".join(task.solve(item.twin))
            assert score_text(said, item.references, task.scorer) == 0


@pytest.mark.parametrize("name", GENERATED)
def test_prompt_and_answer_fill_the_length_and_not_more(name: str, kit: Kit, toy: Kit) -> None:
    task = TASKS[name]
    kit = fitting(name, kit, toy)
    for length in LENGTHS.get(name, (1500, 4096)):
        item = task.item(kit, length, 1)
        answer = kit.prompter.encode(item.prompt, item.answer, item.spans)
        # RULER's 30 tokens are few for five names in this tokenizer
        assert len(answer.ids) <= length + (10 if name == "vt" else 0)
        assert item.tokens + task.answer_tokens <= length
        assert item.tokens + task.answer_tokens > 0.85 * length
        twin = kit.prompter.count(item.twin)
        assert abs(twin - item.tokens) <= 0.1 * length


def test_the_same_item_is_made_again_and_another_number_is_another(kit: Kit) -> None:
    for name in ("needle", "niah_multiquery", "cwe", "fwe", "vt"):
        first, again, other = (TASKS[name].item(kit, 3000, n) for n in (0, 0, 1))
        assert first == again
        assert first.hash != other.hash


def test_needles_stand_at_their_depth_between_sentences() -> None:
    pieces = [f"Sentence {number:03d}. " for number in range(100)]
    for depth in (0.0, 0.31, 0.5, 1.0):
        text = hide(pieces, ["NEEDLE. "], [depth])
        at = text.index("NEEDLE")
        assert at == pytest.approx(depth * len("".join(pieces)), abs=len(pieces[0]))
        assert at % len(pieces[0]) == 0
        assert text.replace("NEEDLE. ", "") == "".join(pieces)
    assert hide(["a "], ["x ", "y "], [0.0, 0.0]) == "x y a "
    for depths in (linear_depths(9), sigmoid_depths(9)):
        assert (depths[0], depths[-1], len(depths)) == (0, 1, 9)
        assert depths == sorted(depths)
    assert sigmoid_depths(9)[1] < linear_depths(9)[1]


def test_needle_task_with_several_needles_and_decoys(kit: Kit) -> None:
    several = Kit(kit.prompter, Grammar(), needles=3, decoys=4)
    item = TASKS["needle"].item(several, 2048, 2)
    notes = re.findall(r"number of the (\S+) is (\d+)\.", item.prompt)
    keys = Counter(key for key, _ in notes)
    (queried, count), *decoys = keys.most_common()
    assert count == len(item.references) == 3
    assert len(decoys) == 4
    for key, _ in decoys:
        assert len(set(key.split("-")) & set(queried.split("-"))) == 1
    assert item.details.depth == 0.5


def test_latent_needles_share_no_word_with_their_question(kit: Kit) -> None:
    for number in range(8):
        prompt = TASKS["latent"].item(kit, 1024, number).prompt
        question = set(re.findall(r"\w+", prompt.rsplit("Question:", 1)[1].lower()))
        needles = re.findall(r"These days \S+ has a flat right beside [^.]+\.", prompt)
        assert len(needles) == 4
        common = {"the", "of"}
        for needle in needles:
            assert not set(re.findall(r"\w+", needle.lower())) & question - common


def test_latent_lists_come_to_what_python_says_and_their_twins_to_something_else(kit: Kit) -> None:
    question = re.compile(r"what does print\((.+)\) show")
    seen = set()
    for number in range(40):
        item = TASKS["latent_list"].item(kit, 1024, number)
        for prompt, same in ((item.prompt, True), (item.twin, False)):
            program = prompt.split("\n\n")[1]
            names: dict[str, Any] = {}
            exec(program, {}, names)
            said = str(eval(question.findall(prompt)[-1], {}, names))
            assert (said == item.references[0]) is same
        seen.add(re.sub(r"\b[a-z]+\b(?!\()", "", question.findall(item.prompt)[-1]))
        methods = re.findall(r"\.(\w+)\(", item.prompt)
        twins = re.findall(r"\.(\w+)\(", item.twin)
        assert len(methods) == len(twins)
    assert len(seen) == 5


@given(
    rate=st.floats(0.6, 60), head=st.integers(0, 300), budget=st.integers(300, 200_000),
    bumps=st.integers(0, 40),
)  # fmt: skip
def test_fitting_finds_the_last_unit_that_fits_within_few_tries(
    rate: float, head: int, budget: int, bumps: int
) -> None:
    tries = 0

    def length(units: int) -> int:
        return head + int(rate * units) + bumps * (units // 50)

    def count(text: str) -> int:
        nonlocal tries
        tries += 1
        return length(int(text))

    units = fit(str, count, budget)
    assert length(units) <= budget < length(units + 1) or length(units) == budget
    assert tries <= 30


def test_fitting_refuses_what_can_never_fit() -> None:
    with pytest.raises(TooShort, match="at least 40 tokens, and there is room for 30"):
        fit(lambda units: "x" * (40 + units), len, 30)
    with pytest.raises(InputError, match="too short"):
        fit(lambda n: "".join(Fixed("book", ["word "] * 5).pieces("s", n)), len, 1000)


@given(tokens=st.integers(1, 90), pieces=st.integers(1, 400), short=st.integers(0, 300))
def test_a_text_that_suffices_is_never_called_too_short(
    tokens: int, pieces: int, short: int
) -> None:
    # sentences may be longer than fitting first takes them to be
    text = Fixed("book", ["word " * tokens] * pieces)

    def build(units: int) -> str:
        return "".join(text.pieces("s", units))

    def count(built: str) -> int:
        return built.count("word")

    budget = max(0, tokens * pieces - short)
    assert fit(build, count, budget) == budget // tokens
    with pytest.raises(InputError, match="too short"):
        fit(build, count, tokens * pieces + 1)


def test_text_without_full_stops_is_cut_between_words_or_anywhere() -> None:
    for text in ("word " * 3000, "字" * 3000 + "\n", "One. " + "word " * 200 + ". Two."):
        pieces = split(text)
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= 401
    assert all(piece.endswith(" ") for piece in split("word " * 3000))


def test_generated_text_is_unique_and_always_the_same() -> None:
    grammar = Grammar()
    long = grammar.pieces("a", 3000)
    assert Grammar().pieces("a", 10) == long[:10]
    assert grammar.pieces("b", 10) != long[:10]
    ids = text_tokenizer()("".join(long), add_special_tokens=False)["input_ids"]
    assert unique_share(ids) > 0.9
    assert len(set(long)) > 0.99 * len(long)


def test_unique_share_is_one_over_the_repetitions() -> None:
    once = np.random.default_rng(0).integers(0, 10**6, 1000)
    assert unique_share(once) == 1
    assert unique_share(np.tile(once, 4)) == pytest.approx(0.25, abs=0.01)
    assert unique_share([1, 2, 3]) == 1


def test_a_text_is_never_repeated(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Two? Three!\n\nFour")
    (tmp_path / "a.md").write_text("One is 1.5 here. ")
    corpus = open_corpus(str(tmp_path))
    assert sorted(corpus.pieces("any", 4)) == ["Four", "One is 1.5 here. ", "Three!\n\n", "Two? "]
    with pytest.raises(InputError, match=r"4 sentences.*never repeated"):
        corpus.pieces("any", 5)
    text = "A b. C d?\n\nE (f) \u201cg.\u201d H\n"
    assert "".join(split(text)) == text
    code = open_corpus("code").pieces("x", 1000)
    assert all(line.endswith("\n") for line in code)
    with pytest.raises(InputError, match="neither grammar"):
        open_corpus(str(tmp_path / "none"))
    (tmp_path / "pictures").mkdir()
    with pytest.raises(InputError, match=r"pictures has no \.txt, \.md, \.rst, \.text file"):
        open_corpus(str(tmp_path / "pictures"))


def test_two_documents_of_the_archive_answer_together_and_neither_alone(kit: Kit) -> None:
    task = TASKS["archive"]
    for number in range(12):
        item = task.item(kit, 2048, number)
        answer = item.references[0]
        documents = re.split(r"\n\nDocument \d+:\n|\n\nQuestion: ", item.prompt)[1:-1]
        (person,) = [text for text in documents if answer in text]
        name = person.split(",")[0]
        (society,) = [text for text in documents if name in text and text != person]
        queried = re.findall(r"of the (.+) (?:born|buried)\?", item.prompt)[-1]
        assert society.startswith(f"The {queried} was founded")
        given, _, family = name.split()
        assert sum(given in text or family in text for text in documents) > len(documents) / 3
        assert len(set(item.candidates)) == 6
        assert all(candidate in item.prompt for candidate in item.candidates)
        for lost in (person, society):
            with_less = item.prompt.replace(lost, "")
            try:
                assert answer not in task.solve(with_less)
            except KeyError:  # nobody says who founded it
                assert lost == society


def test_suites_and_tasks_are_chosen_by_name() -> None:
    tasks, measures = choose(["ruler", "needle", "drift"], 0)
    assert [task.name for task in tasks][:2] == ["niah_single_1", "niah_single_2"]
    assert len(tasks) == 12
    assert measures == ["drift"]
    assert len(choose(["ruler"], 2)[0]) == 13
    for name, message in (("niah", "unknown"), ("qa_2", "--qa FILE")):
        with pytest.raises(InputError, match=message):
            choose([name], 1)


def test_chat_prompts_leave_the_answer_in_the_assistants_turn(kit: Kit) -> None:
    tokenizer = text_tokenizer()
    with pytest.raises(InputError, match="no chat template"):
        Prompter(tokenizer, chat=True)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[model] "
    )
    chat = Kit(Prompter(tokenizer, chat=True), Grammar())
    task: Task = TASKS["niah_single_2"]
    item = task.item(chat, 1024, 0)
    assert re.search(r"in the text above\? \[model\] The special number", item.prompt)
    ids = chat.prompter.ids(item.prompt)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert item.tokens + task.answer_tokens <= 1024
