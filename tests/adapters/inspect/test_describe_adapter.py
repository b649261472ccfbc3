"""The description of one adapter, against its dense change in float64."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from inspected import dense, direct_effective_rank, foreign, printed

from regraft.adapters.inspect.inspect import inspect_model
from regraft.adapters.reader import RECORD
from regraft.errors import InputError


def test_adapter_figures_match_its_dense_change(folders: dict[str, Path]) -> None:
    result = inspect_model(str(folders["lora"]))
    changes = dense(folders["lora"])
    total = math.sqrt(sum(float(d.square().sum()) for d in changes.values()))
    assert result.kind == "adapter"
    assert result.base == str(folders["base"])
    assert (result.rank_min, result.rank_max, result.layout) == (4, 4, "portable")
    assert result.change_norm == pytest.approx(total, rel=1e-6)
    assert result.leaves["q_proj"].modules == 2
    for name, fact in result.modules.items():
        assert fact.change_norm == pytest.approx(float(changes[name].norm()), rel=1e-6)
        assert fact.effective_rank == pytest.approx(direct_effective_rank(changes[name]), rel=1e-5)
    assert result.context.extended.max_position_embeddings == 2048
    assert "--max-lora-rank 8" in result.readers["vLLM"]
    text = printed(result)
    assert "theta 10000, 256  ->  theta 160000, 2k" in text
    assert "of the projections' change" in text


def test_merged_adapter_names_its_inputs(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    shutil.copytree(folders["lora"], folder)
    record = json.loads((folder / RECORD).read_text())
    merge = {"method": "ties", "recipe": "", "inputs": ["one"], "exact": False}
    record |= {"made_by": "merge", "merge": merge}
    record["totals"]["error"] = 0.125
    del record["extraction"]
    (folder / RECORD).write_text(json.dumps(record))
    text = printed(inspect_model(str(folder)))
    assert "by ties from one" in text
    assert "0.125 of the merged change" in text


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "with --max-lora-rank 8"),
        (
            {"rank_pattern": {"layers.1.self_attn.q_proj": 2}},
            "no: it ignores rank and alpha",
        ),
        ({"modules_to_save": ["norm"]}, "no: it refuses whole tensors (1 in modules_to_save)"),
    ],
)
def test_programs_that_can_load_an_adapter(
    tmp_path: Path, config: dict[str, Any], expected: str
) -> None:
    result = inspect_model(str(foreign(tmp_path / "lora", **config)))
    assert expected in result.readers["vLLM"]
    assert result.readers["PEFT"] == "yes"
    assert result.totals is None
    assert "not stored" in printed(result)


def test_scaling_is_that_of_peft(tmp_path: Path) -> None:
    result = inspect_model(str(foreign(tmp_path / "plain")))
    assert (result.scaling_min, result.scaling_max) == (2.0, 2.0)
    stabilised = inspect_model(str(foreign(tmp_path / "rs", use_rslora=True)))
    assert stabilised.scaling_max == 4.0
    assert "rsLoRA" in printed(stabilised)


def test_an_adapter_regraft_cannot_apply_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use_dora=True"):
        inspect_model(str(foreign(tmp_path / "dora", use_dora=True)))
