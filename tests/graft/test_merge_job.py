"""A merge recipe as a job: its later blocks are checked by merge and run by graft."""

from __future__ import annotations

import pytest
from commands import run


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("recover: {stepps: 3}", "line 3: 'stepps' is not a key here (did you mean stages?)"),
        ("recover: absent.yaml", "absent.yaml cannot be read"),
        ("evaluate: {zork: 1}", "line 3"),
    ],
)
def test_blocks_for_later_are_checked_by_merge(block, words, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"merge_method: linear\nmodels: [{{model: a}}, {{model: b}}]\n{block}\n")
    result = run("merge", recipe, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert words in result.stderr
