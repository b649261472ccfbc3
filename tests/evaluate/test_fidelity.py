"""Adapters put back on their base: shares of the donor's gain, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import answers, evaluate, record, toy
from models import LONG, contents
from safetensors.torch import load_file, save_file

from regraft.adapters.extract import card
from regraft.adapters.extract.extract import extract_lora
from regraft.errors import InputError, LineageError
from regraft.evaluate.answers.model import Source
from regraft.evaluate.report import files, plots
from regraft.evaluate.report.aggregate import fidelity_ratios
from regraft.evaluate.result import EvaluatedAdapter, FidelityRecord
from regraft.evaluate.suites import TASKS

QUICK: dict[str, Any] = {"haystack": "world", "items": 4, "suite": "toy", "lengths": "64,128"}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, a donor that is it and a change of rank 8, and adapters of rank 2 and 8."""
    root = tmp_path_factory.mktemp("family")
    base, donor = toy(root / "base"), toy(root / "donor", **LONG)
    generator = torch.Generator().manual_seed(1)
    state = load_file(donor / "model.safetensors")
    for name, weight in state.items():
        if "proj" in name:
            left = torch.randn(weight.shape[0], 8, generator=generator)
            weight += 0.01 * left @ torch.randn(8, weight.shape[1], generator=generator)
    save_file(state, donor / "model.safetensors", metadata={"format": "pt"})
    folders = {"base": base, "donor": donor}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(card, "_draw", lambda path, modules: None)
        for rank in (2, 8):
            folders[f"rank {rank}"] = root / f"adapter-{rank}"
            extract_lora(
                str(base), str(donor), folders[f"rank {rank}"], rank=str(rank), dtype="float32",
                verify=False,
            )  # fmt: skip
    return folders


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "draw", lambda folder, result: [])


def run(family: dict[str, Path], out: Path, *ranks: int, **more: Any) -> dict[str, Any]:
    adapters = tuple(str(family[f"rank {rank}"]) for rank in ranks)
    models = more.pop("models", [f"donor={family['donor']}"])
    return evaluate(models, out, adapters=adapters, **{**QUICK, **more})


def test_fidelity_is_the_share_of_the_donors_gain() -> None:
    right = {"base": 20, "donor": 80, "rank 2": 50, "rank 8": 77}
    tasks = [TASKS[name] for name in ("notes", "vt", "shout")]
    found = {
        (name, task.name, length): answers(count if length == 128 else 20)
        for name, count in right.items()
        for task in tasks
        for length in (64, 128)
    }
    result = fidelity_ratios(found, tasks, "base", "donor", ["rank 2", "rank 8"])
    assert list(result) == ["notes", "vt", "all"]  # shouting is a skill
    for task in result:
        assert result[task][64] == {"rank 2": None, "rank 8": None}  # nothing was gained there
        assert result[task][128]["rank 2"].value == pytest.approx(30 / 60)
        assert result[task][128]["rank 8"].value == pytest.approx(57 / 60)
    adapters = {f"rank {rank}": EvaluatedAdapter(place="", rank=rank, sha256={}) for rank in (2, 8)}
    ratios = {**result, "cwe": {64: dict.fromkeys(adapters)}}
    fidelity = FidelityRecord(base="base", donor="donor", adapters=adapters, ratios=ratios)
    drawn = plots.fidelity(record(fidelity=fidelity))
    assert [plot.task for plot in drawn] == ["notes", "vt", "all"]
    assert [line.name for line in plots.distinct_lines(drawn)] == ["128 tokens"]  # 64 has no line
    alone, both = (result[task][128]["rank 2"] for task in ("notes", "all"))
    assert alone.low < both.low < 0.5 < both.high < alone.high


def test_an_adapter_is_measured_on_its_base_and_named_by_its_rank(
    family: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run(family, out, 8, 2)
    assert list(result["models"]) == ["donor", "base", "donor, rank 2", "donor, rank 8"]
    assert {name: facts["rank"] for name, facts in result["fidelity"]["adapters"].items()} == {
        "donor, rank 2": 2, "donor, rank 8": 8,
    }  # fmt: skip
    assert result["fidelity"]["base"] == "base"
    contexts = {name: facts["context"] for name, facts in result["models"].items()}
    assert contexts["donor, rank 2"] == contexts["donor"] != contexts["base"]

    def nll(name: str) -> float:
        return float(result["cells"][name]["notes"]["128"]["nll"])

    assert nll("donor, rank 8") == pytest.approx(nll("donor"), abs=1e-5)  # the change has rank 8
    assert abs(nll("donor, rank 2") - nll("donor")) > 1e-3
    assert {folder.name for folder in (out / "items").iterdir()} == {
        "donor", "base", "donor-rank-2", "donor-rank-8",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not list(out.rglob("*.safetensors"))
    page, card = (out / "index.html").read_text(), (out / "README.md").read_text()
    assert "Extraction fidelity: notes" in page
    assert re.search(r"donor, rank 8 \| n/a", card)  # random models gain nothing
    assert "![fidelity.png]" not in card  # so there is nothing to draw


@pytest.mark.usefixtures("without_figures")
def test_a_killed_run_applies_again_and_ends_with_the_same_files(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft.evaluate import cells

    run(family, tmp_path / "whole", 2)
    real, calls = cells.answer, 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 10:  # in the second cell of the third model
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(cells, "answer", dying)
    with pytest.raises(KeyboardInterrupt):
        run(family, tmp_path / "part", 2)
    run(family, tmp_path / "part", 2, resume=True)
    assert calls == 10 + 3
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("without_figures")
def test_a_base_that_is_among_the_models_is_not_examined_twice(
    family: dict[str, Path], tmp_path: Path
) -> None:
    models = [f"recipient={family['base']}", f"donor={family['donor']}", f"graft={family['donor']}"]
    result = run(family, tmp_path / "out", 2, matrix=True, models=models)
    assert result["fidelity"]["base"] == "recipient"
    assert list(result["models"]) == [
        "recipient", "theta only", "donor", "graft", "donor, rank 2",
    ]  # fmt: skip
    assert "transfer graft" in result["ratios"]["notes"]["64"]


def test_what_cannot_be_compared_is_refused_before_any_model_is_loaded(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loading(self: Source, device: torch.device) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Source, "load", loading)
    donor, base = f"donor={family['donor']}", f"base={family['base']}"
    other = toy(tmp_path / "other", seed=5)
    moved, bare = tmp_path / "moved", tmp_path / "bare"
    for folder in (moved, bare):
        shutil.copytree(family["rank 2"], folder)
    record = json.loads((moved / "regraft.json").read_text())
    record["base"]["name"] = "/no/such/base"
    (moved / "regraft.json").write_text(json.dumps(record))
    (bare / "regraft.json").unlink()
    stranger = tmp_path / "stranger"
    shutil.copytree(bare, stranger)

    def said(models: list[str], adapter: Path, **more: Any) -> str:
        with pytest.raises(InputError) as caught:
            evaluate(models, tmp_path / "out", adapters=(str(adapter),), **{**QUICK, **more})
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "is not the base that" in said([donor, f"base={other}"], family["rank 2"])
    assert "donor=MODEL" in said([base], family["rank 2"])
    assert "/no/such/base, cannot be found; give base=MODEL" in said([donor], moved)
    assert "does not record its base" in said([donor], bare)
    with pytest.raises(LineageError, match="no relative"):
        evaluate([donor, f"base={other}"], tmp_path / "out", adapters=(str(bare),), **QUICK)
    assert "has no adapter_config.json" in said([donor], family["base"])
    roles = [f"recipient={other}", donor, f"graft={other}", base]
    with pytest.raises(InputError, match="not base without --adapter"):
        evaluate(roles, tmp_path / "out", matrix=True, **QUICK)


def test_ranks_that_differ_are_named_from_to_and_equal_ones_by_their_folders(
    family: dict[str, Path], tmp_path: Path
) -> None:
    budget = tmp_path / "by-energy"
    extract_lora(
        str(family["base"]), str(family["donor"]), budget, energy=0.9, layout="compact",
        verify=False,
    )  # fmt: skip
    again = tmp_path / "again"
    shutil.copytree(family["rank 2"], again)
    adapters = (str(budget), str(family["rank 2"]), str(again))
    plan = evaluate(
        [f"donor={family['donor']}"], tmp_path / "out", adapters=adapters, dry_run=True, **QUICK
    )["plan"]
    models = plan["models"]
    assert re.search(r"donor, rank 2, donor, rank 2 \(again\), donor, rank \d to \d$", models)


def test_an_adapter_from_training_is_measured_like_an_extracted_one(
    family: dict[str, Path], tmp_path: Path
) -> None:
    from regraft.train.job import train_model

    (tmp_path / "recipe.yaml").write_text(f"""
model: {family["base"]}
method: lora
lora: {{rank: 3}}
stages: [{{length: 64, steps: 1, batch: 1}}]
data:
  cache: {tmp_path / "cache"}
  sources: [{{name: notes, synthetic: notes, words: 64, documents: 4}}]
""")
    train_model(tmp_path / "recipe.yaml", tmp_path / "adapter", device="cpu")
    with pytest.warns(UserWarning, match="its fidelity is to another model"):
        result = evaluate(
            [f"donor={family['donor']}"], tmp_path / "out", adapters=(str(tmp_path / "adapter"),),
            **{**QUICK, "lengths": "64"},
        )  # fmt: skip
    (name,) = result["fidelity"]["adapters"]
    assert name == "donor, rank 3"
    assert result["cells"][name]["notes"]["64"]["items"] == 4
