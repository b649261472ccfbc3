"""The comparison of an adapter with a checkpoint or another adapter, against dense changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from inspected import dense, foreign, printed
from models import LLAMA, save, weights

from regraft.adapters.inspect.comparisons import SameBase
from regraft.adapters.inspect.inspect import inspect_model


def test_an_adapter_fits_a_relative_in_either_order(folders: dict[str, Path]) -> None:
    result = inspect_model(str(folders["derivative"]), str(folders["lora"]))
    assert result == inspect_model(str(folders["lora"]), str(folders["derivative"]))
    assert (result.fits, result.refused) == (True, [])
    assert result.relation.verdict == "relative"
    assert result.relation.roles["projection"].distance == pytest.approx(0.02, rel=0.1)
    assert result.context.output == "theta 160000, 2k"
    assert "would succeed" in printed(result)


def test_refusals_of_apply_are_reported_with_reason(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    done = inspect_model(str(folders["lora"]), str(folders["extended"]))
    assert "change" in done.refused[0]
    assert done.relation.verdict == "relative"
    stranger = save(tmp_path / "stranger", {**LLAMA, "rope_theta": 7e4}, weights(LLAMA, seed=5))
    result = inspect_model(str(folders["lora"]), str(stranger))
    assert result.fits
    assert result.relation.verdict == "stranger"
    assert result.context.output is None
    assert "say which to use" in result.refused[0]
    assert "would refuse" in printed(result)
    wide = {**LLAMA, "hidden_size": 32}
    misfit = inspect_model(str(save(tmp_path / "wide", wide, weights(wide))), str(folders["lora"]))
    assert not misfit.fits
    assert "give a checkpoint of the adapter's architecture" in printed(misfit, 200)


def test_relative_paths_are_accepted(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders["lora"].parent)
    result = inspect_model("lora", "derivative")
    assert result.refused == []
    assert result.relation.verdict == "relative"


def test_adapter_comparison_matches_dense_changes(
    folders: dict[str, Path],
) -> None:
    result = inspect_model(str(folders["lora"]), str(folders["other"]))
    one, other = dense(folders["lora"]), dense(folders["other"])
    assert (result.base.same, result.base.how) == (True, "fingerprint")
    assert result.context_same is False
    for name, fact in result.modules.items():
        x, y = one[name], other[name]
        assert fact.norm == pytest.approx(float(x.norm()), rel=1e-6)
        assert fact.other_norm == pytest.approx(float(y.norm()), rel=1e-6)
        cosine = float((x * y).sum() / (x.norm() * y.norm()))
        assert fact.cosine == pytest.approx(cosine, abs=1e-6)
        (u, _, v), (u2, _, v2) = torch.linalg.svd(x), torch.linalg.svd(y)
        left = (u[:, :4].T @ u2[:, :6]).square().sum() / 4
        right = (v[:4] @ v2[:6].T).square().sum() / 4
        assert fact.overlap == pytest.approx(float(left + right) / 2, rel=1e-4)
    x, y = (torch.cat([d[n].flatten() for n in one]) for d in (one, other))
    assert result.total.cosine == pytest.approx(float(x @ y / (x.norm() * y.norm())), abs=1e-6)
    assert "by chance" in printed(result)


def test_adapter_overlaps_itself_completely(folders: dict[str, Path], tmp_path: Path) -> None:
    result = inspect_model(str(folders["lora"]), str(folders["lora"]))
    assert result.total.cosine == pytest.approx(1.0)
    assert result.total.overlap == pytest.approx(1.0)
    apart = inspect_model(str(folders["lora"]), str(foreign(tmp_path / "foreign")))
    assert apart.base == SameBase(same=None, how="name")
    assert len(apart.only_in_first) == 12
    printed(apart)
