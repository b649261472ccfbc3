"""Texts that are put together of others keep every piece, and their marks lead back to it."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from regraft.data.boundaries import pieces_at, split
from regraft.data.build.generation.restructure import (
    even_cuts,
    interleave,
    nearest,
    random_cuts,
    reorder,
)
from regraft.data.build.generation.restructure import untie as _untie


def untie(texts, seed=0):
    rng = np.random.default_rng(seed)
    return _untie(texts, rng, tail="<to {key}>", head="<from {key}>", trace="<cuts {keys}>")


def test_the_keys_of_an_untied_text_lead_through_every_document():
    texts = [[f"[{n}.{i}]" for i in range(count)] for n, count in enumerate((3, 2, 1, 3))]
    out = untie(texts)
    pieces = re.findall(r"(?:<from (\w+)>)?\[(\d)\.(\d)\](?:<to (\w+)>|<cuts ([\w ]+)>)?", out)
    assert len(pieces) == 9
    after = {key: (text, part) for key, text, part, *_ in pieces if key}
    for key, text, part, to, cuts in pieces:
        if part == str(len(texts[int(text)]) - 1):
            assert len(cuts.split()) == int(part)
            assert cuts.split()[-1:] == ([key] if key else [])
        else:
            assert after[to] == (text, str(int(part) + 1))
    assert len(after) == 5
    for number, own in enumerate(texts):  # in order
        places = [out.index(piece) for piece in own]
        assert places == sorted(places), number


def test_untying_shuffles_by_seed():
    texts = [["a", "b"], ["c", "d"], ["e", "f"]]
    assert untie(texts, 1) == untie(texts, 1) != untie(texts, 2)


def test_random_cuts_leave_no_short_piece():
    ends = np.arange(1, 101)
    for seed in range(50):
        cuts = random_cuts(ends, 3, np.random.default_rng(seed))
        sizes = np.diff([0, *cuts, 100])
        assert len(sizes) == 3
        assert sizes.min() >= 16  # half of a third


def test_even_cuts_make_pieces_of_about_the_size():
    assert even_cuts(np.arange(1, 101), 25) == [25, 50, 75]
    assert even_cuts(np.arange(1, 10), 25) == []
    assert even_cuts(np.array([], dtype=np.int64), 25) == []


def test_the_nearest_pieces_are_those_of_other_documents_by_product():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    owners = np.arange(20) // 4
    for at in range(20):
        others = [i for i in range(20) if owners[i] != owners[at]]
        expected = sorted(others, key=lambda i: -float(vectors[i] @ vectors[at]))
        assert nearest(vectors, owners, at, 5) == expected[:5]
    assert len(nearest(vectors, owners, 0, 99)) == 16


def test_interleaving_puts_pieces_between():
    assert interleave(["a", "b", "c"], [["x"], []]) == "a\n\nx\n\nb\n\nc"


def test_the_order_of_passages_restores_the_text():
    passages = [f"P{number}" for number in range(7)]
    out = reorder(
        passages, np.random.default_rng(0), passage="<{number}>", order="<order {numbers}>"
    )
    by_number = dict(re.findall(r"<(\d)>(P\d)", out))
    order = re.findall(r"<order ([\d ]+)>", out)[0].split()
    assert [by_number[number] for number in order] == passages
    assert list(by_number.values()) != passages


@given(
    st.text(alphabet=st.sampled_from("ab .\n\u0301\u200d😀e漢"), max_size=60),
    st.lists(st.integers(0, 60), max_size=4),
)
def test_cuts_lose_nothing_and_split_no_character(text, places):
    pieces = pieces_at(text, sorted(places))
    assert "".join(pieces) == text
    assert all(pieces)
    for piece in pieces[1:]:
        assert piece[0] not in "\u0301\u200d"


def test_cuts_are_at_ends_of_sentences():
    text = "One is here. Two is there. Three is gone."
    ends = [13, 27]
    assert "".join(split(text)) == text
    for place in range(7, 34):
        cut = len(pieces_at(text, [place])[0])
        assert cut in ends
        assert abs(cut - place) == min(abs(end - place) for end in ends)
    assert pieces_at(text, [2, 40]) == [text]
