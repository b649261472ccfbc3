"""The arithmetic of a native merge: float32, one rounding, no influence of threads and blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from merge_zoo import LONG_TIES, entries, merge, refusal, write_recipe

from regraft.merge.job import merge_models

pytestmark = pytest.mark.usefixtures("in_zoo")


def test_arithmetic_is_float32_and_rounds_once(tmp_path: Path) -> None:
    got = merge(
        tmp_path, {"merge_method": "linear", "models": entries("a16", "b16", "c16", weight=1)}
    )
    inputs = [models.load(Path(name)) for name in ("a16", "b16", "c16")]
    for key, value in got.items():
        assert value.dtype == torch.bfloat16
        exact = sum(one[key].double() for one in inputs) / 3
        # float32's own rounding may tip an entry that lies between two bfloat16 numbers
        assert int((value != exact.bfloat16()).sum()) <= value.numel() / 1000, key


def test_mixed_dtypes_need_an_out_dtype(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {"merge_method": "linear", "models": entries("a", "b16", weight=1)}
    assert "'out_dtype: bfloat16'" in refusal(tmp_path, recipe)
    got = merge(tmp_path, {**recipe, "out_dtype": "float16"})
    assert {value.dtype for value in got.values()} == {torch.float16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"


def test_scale_is_a_factor_on_the_whole_change(tmp_path: Path) -> None:
    recipe = {"merge_method": "task_arithmetic", "base_model": "base",
              "models": entries("a", weight=1), "scale": 0.25}  # fmt: skip
    got, base, a = merge(tmp_path, recipe), models.load(Path("base")), models.load(Path("a"))
    for key, value in got.items():
        torch.testing.assert_close(value, base[key] + 0.25 * (a[key] - base[key]))


def test_threads_change_no_byte(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    digests = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            out = tmp_path / str(count)
            merge_models(write_recipe(tmp_path, LONG_TIES), out)
            digests.append({p.name: p.read_bytes() for p in sorted(out.iterdir())})
    finally:
        torch.set_num_threads(before)
    assert digests[0] == digests[1]


def test_block_size_changes_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from regraft.merge.native import stream

    recipe = {**LONG_TIES, "models": entries("a", "b", "long", weight=0.5, density=0.6),
              "context": "long"}  # fmt: skip
    whole = merge(tmp_path, recipe)
    monkeypatch.setattr(stream, "BLOCK", 1000)
    (tmp_path / "small").mkdir()
    small = merge(tmp_path / "small", recipe)
    assert all(torch.equal(whole[key], small[key]) for key in whole)
