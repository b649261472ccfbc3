"""Passages that the far text tells of are cut out and asked for; the document keeps its length."""

from __future__ import annotations

import random
import re
import tracemalloc

import pytest
from built import documents, run_step

from regraft.data.build import generation
from regraft.data.build.generation.far_middle import MARK, QUESTIONS, far_middle
from regraft.data.build.steps.tasks import Tasks
from regraft.data.build.tokens import ByteCounter

FILLER = [f"The {i}th line of the filler stands right here, alone {i}. " for i in range(60)]
FAR = "Captain Morwenna hid the emerald compass below the chapel. "
LATE = "Doctor Quillfeather lost the walnut barometer near Oxbridge. "
NEAR = "Bishop Ulverstone kept his crimson parrots in Tidewater. "
NOWHERE = "Merchant Zebulon painted several unusual gondolas overnight. "


def _text() -> str:
    """Four passages in the first half; the words of one come again in the middle of the second, of
    one at the end, of one beside it, of one nowhere."""
    lines = list(FILLER)
    lines[5], lines[10], lines[15], lines[20] = FAR, LATE, NEAR, NOWHERE
    lines[16] = "They saw Bishop Ulverstone and crimson parrots in Tidewater. "
    lines[38] = "Morwenna showed the emerald compass in the chapel to everyone. "
    lines[59] = "Later Quillfeather found that walnut barometer in Oxbridge."
    return "".join(lines)


def test_the_passage_that_only_the_far_text_tells_of_is_cut() -> None:
    for seed in range(5):
        made = far_middle(random.Random(seed), _text(), 1, ByteCounter())
        assert made is not None
        (query,) = made.queries
        assert query.answer == FAR.strip()
        before, after = re.findall(r'"([^"]+)"', query.question)
        assert FILLER[4].strip().endswith(before)
        assert FILLER[6].startswith(after)
        assert made.text.count(MARK) == 1
        assert _text().startswith(made.text.replace(MARK, query.answer))


@pytest.mark.parametrize("form", ["text", "messages"])
def test_documents_keep_their_length_and_answers_are_far(form) -> None:
    rng = random.Random(0)
    words = [f"word{i}" for i in range(400)]
    texts = ["".join(f"{' '.join(rng.choices(words, k=10))} {i}. " for i in range(80))] * 3
    step = Tasks(share=1.0, kinds=["far_middle"], form=form)
    result, statistics = run_step(step, documents(*texts))
    assert statistics.counts == {"far_middle": 3}
    for made, text in zip(result, texts, strict=True):
        assert len(text) - 8 < len(made.text) <= len(text)  # a byte is a token
        first = made.text.rindex(MARK)
        answer = made.metadata["answer"]
        asked = made.text.index(f"\n\n{made.metadata['question']}\n{answer}")
        assert asked - first > len(text) / 4
        assert answer not in made.text[asked - 200 : asked]
        assert made.text.count(answer) == 1
        assert made.text.endswith(answer)
        if form == "messages":
            assert made.messages is not None
            assert made.messages[-1].content == answer


def test_texts_without_a_passage_stay_as_they_are() -> None:
    marked = _text().replace("alone 30", MARK)
    same = "The very same line is here again and again, always. " * 80
    texts = ["Too short. " * 20, marked, same]
    step = Tasks(share=1.0, kinds=["far_middle"])
    result, statistics = run_step(step, documents(*texts))
    assert [one.text for one in result] == texts
    assert statistics.counts == {"no passage to cut out": 3}


def test_memory_is_a_few_texts_and_the_words_of_candidates(monkeypatch) -> None:
    monkeypatch.setattr(generation.far_middle, "_MOST_COMPARED", 20)
    text = "".join(
        f"Sentence {i} speaks of item{i % 300} or stone{i % 400}, no more. " for i in range(500)
    )
    tracemalloc.start()
    try:
        assert far_middle(random.Random(0), text, 2, ByteCounter()) is not None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * len(text)  # with a set of words for each sentence 20 times the text


def test_a_long_run_without_spaces_takes_time_in_proportion() -> None:
    """As of base64; time by its square would exceed the limit of a test."""
    text = _text().replace("alone 40", "x" * 100_000)
    made = far_middle(random.Random(0), text, 1, ByteCounter())
    assert made is not None
    cut = text.replace(made.queries[0].answer, MARK)
    assert cut.startswith(made.text)
    assert cut[len(made.text)].isspace()
    assert not cut[len(made.text) - 1].isspace()


def test_wordings_have_places_for_both_sides() -> None:
    for wording in QUESTIONS:
        assert wording.format(before="a b", after="c d").count('"') == 4
