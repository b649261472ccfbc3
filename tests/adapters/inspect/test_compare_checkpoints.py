"""The comparison of two models, against direct computation in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from inspected import direct_effective_rank, printed
from models import LLAMA, changed, load, save, weights

from regraft.adapters.inspect.comparisons import TensorChange, TotalChange
from regraft.adapters.inspect.inspect import inspect_model


def test_checkpoint_figures_match_direct_computation(folders: dict[str, Path]) -> None:
    result = inspect_model(str(folders["base"]), str(folders["extended"]))
    b = {k: t.double() for k, t in load(folders["base"]).items()}
    e = {k: t.double() for k, t in load(folders["extended"]).items()}

    def check(row: TensorChange | TotalChange, names: list[str]) -> None:
        x = torch.cat([b[name].flatten() for name in names])
        y = torch.cat([e[name].flatten() for name in names])
        assert row.delta_norm == pytest.approx(float((y - x).norm()), rel=1e-5)
        assert row.relative_delta == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-5)
        assert row.cosine == pytest.approx(float(x @ y / (x.norm() * y.norm())), abs=2e-7)

    assert result.kind == "checkpoints"
    assert result.relation.verdict == "relative"
    assert sorted(result.tensors) == sorted(b)
    check(result.total, list(b))
    check(result.roles["projection"], [n for n in b if "proj" in n])
    check(result.layers["1"], [n for n in b if ".layers.1." in n])
    check(result.leaves["q_proj"], [n for n in b if "q_proj" in n])
    for name, row in result.tensors.items():
        check(row, [name])
        if "proj" in name:
            exact = direct_effective_rank(e[name] - b[name])
            assert row.effective_rank == pytest.approx(exact, rel=1e-5)
            top = float(torch.linalg.matrix_norm(e[name] - b[name], 2))
            assert row.spectral_norm == pytest.approx(top, rel=1e-4)
    assert result.total.changed == 14
    assert result.context.same is False
    text = printed(result)
    assert "theta 10000, 256  ->  theta 160000, 2k" in text
    assert "relatives" in text


def test_rounding_alone_is_not_above_noise(tmp_path: Path) -> None:
    config = {**LLAMA, "hidden_size": 128, "intermediate_size": 256}
    state = weights(config)
    one = save(tmp_path / "one", config, state)
    two = save(tmp_path / "two", config, state, dtype=torch.bfloat16)
    noise = inspect_model(str(one), str(two)).roles["projection"].above_noise
    real = save(tmp_path / "real", config, changed(state, rank=4, size=0.1, seed=1))
    signal = inspect_model(str(one), str(real)).roles["projection"].above_noise
    assert noise < 0.05
    assert signal > 0.99


def test_equal_models_are_reported_as_the_same(folders: dict[str, Path]) -> None:
    result = inspect_model(str(folders["base"]), str(folders["base"]))
    assert result.relation.verdict == "same"
    assert (result.total.changed, result.total.cosine) == (0, 1.0)
    assert "all compared" in printed(result)


def test_strangers_added_rows_and_incomparable_tensors_are_reported(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    state = weights({**LLAMA, "vocab_size": 83}, seed=9)
    del state["model.norm.weight"]
    state["model.extra"] = torch.ones(2)
    state["model.layers.0.mlp.up_proj.weight"] = torch.ones(97, 64)
    other = save(tmp_path / "other", {**LLAMA, "vocab_size": 83}, state)
    result = inspect_model(str(folders["base"]), str(other))
    assert result.relation.verdict == "stranger"
    assert result.only_in_first == ["model.norm.weight"]
    assert result.only_in_second == ["model.extra"]
    assert list(result.not_comparable) == ["model.layers.0.mlp.up_proj.weight"]
    assert result.rows_added == {"lm_head.weight": 3, "model.embed_tokens.weight": 3}
    x = load(folders["base"])["model.embed_tokens.weight"].double()
    delta = state["model.embed_tokens.weight"][:80].double() - x
    row = result.tensors["model.embed_tokens.weight"]
    assert row.delta_norm == pytest.approx(float(delta.norm()), rel=1e-5)
    text = printed(result)
    assert "strangers" in text
    assert "3 rows added" in text
