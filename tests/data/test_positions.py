"""Position samplers: their shape, the distribution of distances, and attention across the skips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.data.positions import Sampler, contiguous_distances


def shares(positions: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of causal pairs by distance."""
    queries, keys = np.tril_indices(len(positions))
    counts, _ = np.histogram(positions[queries] - positions[keys], edges)
    return counts / counts.sum()


@given(
    kind=st.sampled_from(["contiguous", "pose", "multi_chunk"]),
    length=st.integers(1, 600),
    more=st.integers(0, 3000),
    extra=st.integers(0, 3000),
    content=st.sampled_from(["near", "far"]),
    offset=st.booleans(),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=200)
def test_positions_increase_and_stay_below_the_target(
    kind, length, more, extra, content, offset, seed
):
    sampler = Sampler(kind, length + more, chunks=(2, 9), least=16, content=content, offset=offset)
    positions, text = sampler.sample(length, length + extra, (seed, 3, 4, 0))
    again, _ = sampler.sample(length, length + extra, (seed, 3, 4, 0))
    for numbers, end in ((positions, length + more), (text, length + extra)):
        assert numbers.dtype == np.int64
        assert len(numbers) == length
        assert numbers[0] >= 0
        assert numbers[-1] < end
        assert (np.diff(numbers) >= 1).all()
    assert (positions == again).all()


def test_another_step_sample_seed_or_document_gives_other_positions():
    sampler = Sampler("multi_chunk", 4096, least=16, unskipped=0)
    first = sampler.sample(512, 4096, (0, 0, 0, 0))[0]
    for key in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        assert (sampler.sample(512, 4096, key)[0] != first).any()


def test_number_and_length_of_chunks_are_as_requested():
    sampler = Sampler("multi_chunk", 10**6, chunks=(3, 7), least=20, unskipped=0)
    seen = set()
    for step in range(300):
        positions, _ = sampler.sample(512, 512, (0, step, 0, 0))
        cuts = np.flatnonzero(np.diff(positions) > 1) + 1
        lengths = np.diff([0, *cuts, 512])
        assert lengths.min() >= 20
        seen.add(len(lengths))
    assert seen == {3, 4, 5, 6, 7}


def test_share_of_unskipped_rows():
    sampler = Sampler("multi_chunk", 10**6, least=16, unskipped=0.25)
    contiguous = [
        (np.diff(sampler.sample(256, 256, (0, step, 0, 0))[0]) == 1).all() for step in range(1500)
    ]
    assert 0.21 < np.mean(contiguous) < 0.29


def test_far_content_is_as_far_apart_as_its_positions():
    sampler = Sampler("multi_chunk", 4096, least=16, unskipped=0, content="far")
    positions, text = sampler.sample(256, 4096, (0, 0, 0, 0))
    assert (positions - positions[0] == text).all()
    assert text[-1] > 500
    near = Sampler("multi_chunk", 4096, least=16, unskipped=0, content="near")
    assert (near.sample(256, 4096, (0, 0, 0, 0))[1] == np.arange(256)).all()


def test_the_original_pose_has_two_chunks_and_its_first_is_at_most_half():
    sampler = Sampler("pose", 8192, unskipped=0)
    firsts = []
    for step in range(200):
        positions, text = sampler.sample(512, 2560, (0, step, 0, 0))
        jumps = np.flatnonzero(np.diff(positions) > 1)
        assert len(jumps) <= 1
        assert positions[0] == text[0] == 0
        firsts += [int(jump) + 1 for jump in jumps]
    assert max(firsts) <= 256
    assert min(firsts) < 20


def test_many_chunks_have_the_distances_of_a_long_row_and_two_do_not():
    target, window = 65536, 512
    edges = np.array([0, 512, 4096, 16384, 32768, 65536], dtype=np.int64)
    expected = contiguous_distances(target, edges)
    assert expected.sum() == pytest.approx(1)
    whole = np.arange(300, dtype=np.int64)
    few = np.array([0, 10, 100, 300], dtype=np.int64)
    assert shares(whole, few) == pytest.approx(contiguous_distances(300, few), abs=1e-12)

    def drawn(sampler: Sampler) -> np.ndarray:
        rows = (sampler.sample(window, window, (7, step, 0, 0))[0] for step in range(150))
        return np.mean([shares(row, edges) for row in rows], axis=0)

    many = drawn(Sampler("multi_chunk", target, chunks=(64, 64), least=4, unskipped=0))
    two = drawn(Sampler("pose", target, unskipped=0))
    assert np.abs(many - expected).max() < 0.03
    assert np.abs(two - expected).max() > 0.3


def test_a_late_chunk_sees_the_first_across_the_skip():
    """transformers alone would take the jump for a new document and hide the first chunk."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from regraft.parallel import Mesh, attach

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        )
    ).double()  # fmt: skip
    positions = torch.cat([torch.arange(16), torch.arange(2000, 2016)])[None]
    ids = torch.randint(0, 50, (1, 32))
    other = ids.clone()
    other[0, 3] = (ids[0, 3] + 1) % 50

    def change(**more) -> float:
        with torch.no_grad():
            logits = [
                model(input_ids=row, position_ids=positions, use_cache=False, **more).logits
                for row in (ids, other)
            ]
        return float((logits[0] - logits[1])[0, 20:].abs().max())

    assert change() == 0  # transformers hides it; if this fails, transformers has changed
    attach(model)
    cut = Mesh.create().cut({"input_ids": ids})
    assert change(context_parallel=cut["context_parallel"]) > 1e-4
