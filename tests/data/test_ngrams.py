"""Runs of tokens are found by their hash exactly where a direct comparison finds them."""

from __future__ import annotations

import numpy as np

from regraft.data.ngrams import first_occurrences, ngram_hashes


def test_first_occurrences_are_those_of_a_direct_comparison():
    ids = np.random.default_rng(0).integers(0, 3, 200).tolist()
    for n in (1, 2, 5):
        runs = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
        assert first_occurrences(ids, n).tolist() == [runs.index(run) for run in runs]


def test_a_text_shorter_than_a_run_has_none():
    assert len(ngram_hashes([1, 2], 3)) == len(first_occurrences([], 3)) == 0
