"""RULER's tasks against what NVIDIA's scripts do (github.com/NVIDIA/RULER at commit c3f5e3b)."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest
from evaluated import text_tokenizer

from regraft.evaluate.prompts.haystack import Fixed, Grammar
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.suites import SUITES, TASKS
from regraft.evaluate.tasks import Kit, listing, score_text
from regraft.evaluate.tasks.ruler.needles import NOISE
from regraft.evaluate.tasks.ruler.placement import DEPTHS, insert

GRID = (
    0, 3, 5, 8, 10, 13, 15, 18, 21, 23, 26, 28, 31, 33, 36, 38, 41, 44, 46, 49, 51, 54, 56, 59, 62,
    64, 67, 69, 72, 74, 77, 79, 82, 85, 87, 90, 92, 95, 97, 100,
)  # fmt: skip
"""numpy's round(linspace(0, 100, 40)), as in NVIDIA's niah.py."""


@pytest.fixture(scope="module")
def kit() -> Kit:
    return Kit(Prompter(text_tokenizer()), Grammar())


def test_needle_tasks_have_nvidias_parameters(kit: Kit) -> None:
    # (needles in the text, answers, form of keys, form of values); None: the haystack is needles
    number, uuid = r"\d{7}", r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    word = r"[a-z]+-[a-z]+"
    expected: dict[str, tuple[int | None, int, str, str]] = {
        "niah_single_1": (1, 1, word, number),
        "niah_single_2": (1, 1, word, number),
        "niah_single_3": (1, 1, word, uuid),
        "niah_multikey_1": (4, 1, word, number),
        "niah_multikey_2": (None, 1, word, number),
        "niah_multikey_3": (None, 1, uuid, uuid),
        "niah_multivalue": (4, 4, word, number),
        "niah_multiquery": (4, 4, word, number),
    }
    for name, (count, answers, key, value) in expected.items():
        item = TASKS[name].item(kit, 4096, 0)
        needles = re.findall(r"assigned to (\S+) is (\S+)\.", item.prompt)
        assert count is None or len(needles) == count
        if count is None:
            assert sum(len(f"{k}{v}") for k, v in needles) > 0.3 * len(item.prompt)
        assert len(item.references) == answers
        assert len({v for _, v in needles}) == len(needles)
        assert all(re.fullmatch(key, k) and re.fullmatch(value, v) for k, v in needles)
        assert TASKS[name].answer_tokens == 128
    assert {name: TASKS[name].answer_tokens for name in ("vt", "cwe", "fwe", "qa_1")} == {
        "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32,
    }  # fmt: skip
    assert TASKS["qa_1"].scorer == TASKS["qa_2"].scorer == "part"
    assert len(SUITES["ruler"]) == 13


def test_essay_needles_stand_on_the_grid_of_40_depths(kit: Kit) -> None:
    assert DEPTHS == GRID
    pieces = [f"Sentence {number}. " for number in range(200)]
    essay = Kit(kit.prompter, Fixed("essay", pieces))
    seen = set()
    for number in range(12):
        item = TASKS["niah_multivalue"].item(essay, 1200, number)
        text = item.prompt.split("follows it.\n")[1].split("\nWhich")[0]
        sentences = re.findall(r"Sentence \d+\.|The special [^.]+\.", text)
        total = sum(sentence.startswith("Sentence") for sentence in sentences)
        before, depths = 0, []
        for sentence in sentences:
            if sentence.startswith("Sentence"):
                before += 1
            else:
                depths.append(before)
        allowed = [int(total * (depth / 100)) for depth in GRID]
        assert all(depth in allowed for depth in depths)
        seen.update(depths)
    assert len(seen) > 20


def test_noise_and_needle_haystacks_have_the_needle_at_any_line(kit: Kit) -> None:
    # NVIDIA: random.sample(range(lines), needles), so never behind the last line
    lines = Counter()
    for number in range(40):
        item = TASKS["niah_single_1"].item(kit, 1200, number)
        text = item.prompt.split("follows it.\n")[1].split("\nWhich")[0].split("\n")
        (position,) = (i for i, line in enumerate(text) if line.startswith("The special"))
        assert position < len(text) - 1
        assert item.details.depth == position / (len(text) - 1)
        lines[position] += 1
    on_grid = {int((len(text) - 1) * (depth / 100)) for depth in GRID}
    assert set(lines) <= set(range(len(text) - 1))
    assert len(lines) > 0.6 * len(on_grid)


def test_the_order_of_needles_is_fixed_and_the_queried_key_is_not(kit: Kit) -> None:
    ranks = Counter()
    for number in range(24):
        item = TASKS["niah_multikey_1"].item(kit, 1500, number)
        keys = re.findall(r"assigned to (\S+) is (\S+)\.", item.prompt)
        ranks[[value for _, value in keys].index(item.references[0])] += 1
    assert set(ranks) == {0, 1, 2, 3}


def test_insertion_keeps_the_order_of_what_is_inserted() -> None:
    assert insert(["a", "b", "c"], ["1", "2", "3"], [0, 1, 3]) == "1a2bc3"
    assert insert(["a"], ["1", "2"], [0, 0]) == "12a"


def test_the_tracking_example_has_three_letters_and_is_filled_to_500_tokens(kit: Kit) -> None:
    items = [TASKS["vt"].item(kit, 2048, number) for number in range(3)]
    examples = []
    for item in items:
        example, _, question = item.prompt.partition(".\n\nVariables")
        solved, _, answer = example.partition(" Answer: ")
        names = re.findall(r"VAR ([A-Z]+) = ", solved)
        assert all(len(name) == 3 for name in names)
        assert len(names) == 5
        assert answer.endswith(listing(names)[0])
        size = kit.prompter.count(solved + " Answer: " + answer.partition(":")[0] + ":")
        line = kit.prompter.count(NOISE) - 1
        assert 500 - 2 * line < size <= 500 + len(names) * 3  # names of an item may cost a token
        assert re.findall(r"VAR ([A-Z]+) = ", question) == item.references
        assert all(len(name) == 5 for name in item.references)
        lines = solved.split("\n")
        examples.append([i for i, text in enumerate(lines) if text.startswith("VAR")])
    assert examples[0] == examples[1] == examples[2]  # one example a run, with other names
    assert items[0].prompt[:300] != items[1].prompt[:300]


def test_counts_of_words_are_nvidias(kit: Kit) -> None:
    for length, of_list, of_example in ((12_000, (30, 3), (10, 3)), (3000, (6, 1), (3, 1))):
        common = TASKS["cwe"].item(kit, length, 0)
        _, example, last = common.prompt.split("numbered list")
        for text, expected in ((last, of_list), (example, of_example)):
            counts = Counter(Counter(re.findall(r"\d+\. (\S+)", text)).values())
            assert counts[expected[0]] == 10
            assert set(counts) == set(expected)
        assert counts[expected[1]] == {12_000: 30, 3000: 10}[length]  # 40 or 20 words


@pytest.mark.parametrize("length", [1000, 4096, 4100])
def test_frequent_words_follow_zeta_over_a_vocabulary_of_length_minus_50_over_50(
    kit: Kit, length: int
) -> None:
    item = TASKS["fwe"].item(kit, length, 0)
    text = item.prompt.split("below.\n")[1].split("\nQuestion")[0]
    counts = Counter(text.split())
    size = (length - 50) // 50
    words = len(counts)
    (first, most), *rest = counts.most_common()
    assert first == "..."
    # n words in all, of which the first is said int(n / zeta(2)) times
    zeta = math.pi**2 / 6
    drawn = [
        n for n in range(int(most * zeta), int((most + 1) * zeta) + 2) if int(n / zeta) == most
    ]
    tables = [[int(n * k**-2.0 / zeta) for k in range(1, size + 1)] for n in drawn]
    assert [count for _, count in counts.most_common()] in [
        [count for count in table if count] for table in tables
    ]
    assert words <= size
    assert [word for word, _ in rest[:3]] == item.references


@pytest.mark.parametrize("space", ["\u00a0", "\u2009", "\u3000", "\u00ad", "\u200b", "\x7f"])
def test_the_scorer_replaces_ascii_control_characters_and_nothing_else(space: str) -> None:
    assert score_text(f"it was 10{space}000 men", [f"10{space}000"], "part") == 1
    assert score_text("it was 10\x1f000 men", ["10\n000"], "all") == 1
    assert score_text("it was 10\x1f000 men", ["10\x1f000"], "all") == 0


def test_scorers_on_hand_made_answers() -> None:
    assert score_text("It is 17 and 4.", ["17", "4", "9"], "all") == pytest.approx(2 / 3)
    assert score_text("In 1066", ["1066", "the year 1066"], "part") == 1
    assert score_text("in\x00PARIS", ["Paris"], "all") == 1
    assert score_text("", ["Paris"], "part") == 0
    text, spans = listing(["a", "bc", "d"])
    assert text == " a, bc and d"
    assert [text[low:high] for low, high in spans] == ["a", "bc", "d"]
