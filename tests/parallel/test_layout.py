"""The zigzag order and the spans, against pairs counted one by one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.parallel.layout import Span, chunks, gather_spans, multiple, pieces, ring_spans


@st.composite
def sequences(draw: st.DrawFn) -> tuple[int, int, tuple[int, ...]]:
    """(ranks, length, starts of documents)"""
    ranks = draw(st.integers(1, 5))
    length = 2 * ranks * draw(st.integers(1, 5))
    starts = draw(st.sets(st.integers(1, length - 1), max_size=5))
    return ranks, length, (0, *sorted(starts))


def positions(rank: int, ranks: int, length: int) -> list[int]:
    return [i for start, stop in chunks(rank, ranks, length) for i in range(start, stop)]


def pairs(spans: list[Span], queries: list[int], keys: list[int]) -> list[tuple[int, int]]:
    """What the spans say is seen, in positions of the text."""
    found = []
    for q0, q1, k0, k1, causal in spans:
        found += [
            (queries[q], keys[k])
            for q in range(q0, q1)
            for k in range(k0, k1)
            if not causal or k1 - 1 - k >= q1 - 1 - q
        ]
    return found


@settings(max_examples=60)
@given(sequences())
def test_spans_are_the_visible_pairs_each_once(case: tuple[int, int, tuple[int, ...]]) -> None:
    ranks, length, starts = case
    document = [sum(s <= i for s in starts) for i in range(length)]
    for rank in range(ranks):
        mine = positions(rank, ranks, length)
        truth = sorted((q, k) for q in mine for k in range(q + 1) if document[k] == document[q])
        gathered = gather_spans(rank, ranks, length, starts)
        assert sorted(pairs(gathered, mine, list(range(length)))) == truth
        passed = [
            pair
            for source in range(ranks)
            for pair in pairs(
                ring_spans(rank, source, ranks, length, starts),
                mine,
                positions(source, ranks, length),
            )
        ]
        assert sorted(passed) == truth


def test_every_rank_has_the_same_work() -> None:
    ranks, length = 4, 64
    keys = list(range(length))
    work = {
        len(pairs(gather_spans(r, ranks, length, (0,)), positions(r, ranks, length), keys))
        for r in range(ranks)
    }
    assert work == {length * (length + 1) // 2 // ranks}


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
def test_pieces_cut_every_token_once(context: int, ulysses: int, times: int) -> None:
    length = multiple(context, ulysses) * times
    everything: list[int] = []
    for rank in range(context):
        shard = [
            i
            for inner in range(ulysses)
            for start, stop in pieces(rank, context, inner, ulysses, length)
            for i in range(start, stop)
        ]
        assert shard == positions(rank, context, length)  # what the all-to-all puts together
        everything += shard
    assert sorted(everything) == list(range(length))
    sizes = {
        sum(b - a for a, b in pieces(r, context, u, ulysses, length))
        for r in range(context)
        for u in range(ulysses)
    }
    assert len(sizes) == 1
