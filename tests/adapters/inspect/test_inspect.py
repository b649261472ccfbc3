"""`inspect` on every kind of folder, its figures checked against direct float64 computation."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import LLAMA, LONG, changed, family, load, save, weights
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract.extract import extract_lora
from regraft.adapters.inspect.inspect import inspect_model
from regraft.adapters.inspect.results import (
    Inspection,
    RoleSize,
    SameBase,
    TensorChange,
    TotalChange,
)
from regraft.adapters.inspect.tables import tables
from regraft.adapters.reader import CONFIG, RECORD, WEIGHTS
from regraft.cli import app
from regraft.errors import CheckpointError, InputError
from regraft.merge.job import merge_models
from regraft.records import to_json

NAMES = ("base", "extended", "derivative", "lora", "other", "graft")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, an extended model, a derivative, an adapter of each, and a graft, in bfloat16."""
    root = tmp_path_factory.mktemp("inspect")
    base, extended, derivative = family(root, dtype=torch.bfloat16, shards=2)
    extract_lora(base, extended, root / "lora", rank=4, verify=False)
    extract_lora(base, derivative, root / "other", rank=6, layout="compact", verify=False)
    apply_lora(root / "lora", derivative, root / "graft")
    return {name: root / name for name in NAMES}


def printed(result: Inspection, width: int = 80) -> str:
    """The printed tables, which fit `width`; checks that the result can be JSON, too."""
    json.dumps(to_json(result), allow_nan=False)
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    for table in tables(result):
        console.print(table)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    return text


def direct_effective_rank(matrix: torch.Tensor) -> float:
    values = torch.linalg.svdvals(matrix.double())
    return float(values.square().sum() ** 2 / values.pow(4).sum())


# One checkpoint


def test_a_checkpoint_is_described_by_its_headers_and_config(folders: dict[str, Path]) -> None:
    result = inspect_model(str(folders["base"]))
    state = load(folders["base"])
    assert result.kind == "checkpoint"
    assert result.architecture == "LlamaForCausalLM"
    assert result.parameters == sum(t.numel() for t in state.values())
    assert result.bytes == 2 * result.parameters
    assert (result.dtypes, result.shards) == ({"bfloat16": len(state)}, 2)
    assert (result.layers, result.hidden_size) == (2, 64)
    assert (result.heads, result.kv_heads, result.head_dim) == (4, 2, 16)
    assert (result.vocabulary, result.tied) == (80, False)
    assert result.context.theta == 10000
    assert result.context.max_position_embeddings == 256
    assert result.context.longest_wavelength == pytest.approx(
        2 * math.pi * 10000 ** (14 / 16), rel=1e-9
    )
    assert result.fingerprint.startswith("sampled:")
    assert result.roles["projection"] == RoleSize(tensors=14, parameters=61440)
    assert (result.unknown_tensors, result.tokenizer_max_length) == ([], None)
    assert "theta 10000, 256" in printed(result)


def test_stored_tied_head_is_counted_once(tmp_path: Path) -> None:
    config = {**LLAMA, "tie_word_embeddings": True}
    state = weights(config)
    once = inspect_model(str(save(tmp_path / "once", config, state)))
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    twice = inspect_model(str(save(tmp_path / "twice", config, state)))
    assert once.tied
    assert twice.tied
    assert once.parameters == twice.parameters


def test_unknown_tensors_and_short_tokenizer_limit_are_reported(tmp_path: Path) -> None:
    state = weights(LLAMA) | {"model.layers.0.self_attn.rank.weight": torch.ones(3)}
    folder = save(tmp_path / "model", {**LLAMA, **LONG}, state)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 256}')
    result = inspect_model(str(folder))
    assert result.unknown_tensors == ["model.layers.0.self_attn.rank.weight"]
    assert result.parameters == sum(t.numel() for t in state.values()) - 3
    assert result.tokenizer_max_length == 256
    text = printed(result)
    assert "truncates at 256" in text
    assert "self_attn.rank.weight" in text


def test_tokenizer_without_limit_is_none(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", LLAMA, weights(LLAMA))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert inspect_model(str(folder)).tokenizer_max_length is None


def test_a_model_without_rope_is_no_error(tmp_path: Path) -> None:
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 32, "n_layer": 1,
        "n_head": 2, "n_positions": 64, "vocab_size": 50,
    }  # fmt: skip
    result = inspect_model(str(save(tmp_path / "gpt2", config, weights(config))))
    assert (result.context, result.context_text) == (None, "no RoPE in the config")
    assert (result.layers, result.hidden_size, result.kv_heads) == (1, 32, 2)
    assert "no RoPE" in printed(result)


def test_contradictory_config_is_printed_not_raised(tmp_path: Path) -> None:
    config = {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}
    result = inspect_model(str(save(tmp_path / "model", config, weights(LLAMA))))
    assert result.context is None
    assert "contradicts itself" in printed(result)


def test_markup_in_a_name_is_printed_literally(tmp_path: Path) -> None:
    folder = save(tmp_path / "[bold]m[/bold]", LLAMA, weights(LLAMA))
    assert "[bold]m[/bold]" in printed(inspect_model(str(folder)), 200)


def test_the_command_prints_no_markup(folders: dict[str, Path]) -> None:
    done = CliRunner().invoke(app, ["inspect", str(folders["base"]), str(folders["extended"])])
    assert done.exit_code == 0, done.output
    assert "Effective rank: of D" in done.stdout
    assert "[dim]" not in done.stdout


# What regraft made


def test_graft_names_its_adapter_and_checkpoint(folders: dict[str, Path]) -> None:
    result = inspect_model(str(folders["graft"]))
    assert result.kind == "graft"
    assert result.made.adapter == str(folders["lora"])
    assert result.made.checkpoint == str(folders["derivative"])
    assert result.context.theta == LONG["rope_theta"]
    assert "Made from" in printed(result)


def test_merge_names_its_method_and_inputs(folders: dict[str, Path], tmp_path: Path) -> None:
    base = folders["base"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"merge_method: ties\nbase_model: {base}\nparameters: {{weight: 1}}\n"
        f"models: [{{model: {base}}}]\n"
    )
    merge_models(recipe, tmp_path / "merged")
    result = inspect_model(str(tmp_path / "merged"))
    assert (result.kind, result.made.inputs) == ("merge", [str(base)])
    assert "ties (native)" in printed(result)


def test_a_broken_record_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = save(tmp_path / "model", LLAMA, weights(LLAMA))
    (folder / RECORD).write_text('{"kind": "graft"}')
    with pytest.raises(CheckpointError, match=r"regraft\.json lacks the key 'adapter'"):
        inspect_model(str(folder))


def test_folder_without_model_or_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a model .* nor an adapter") as error:
        inspect_model(str(tmp_path))
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="does not exist"):
        inspect_model(str(tmp_path / "no" / "such" / "folder"))


# One adapter


def dense(folder: Path) -> dict[str, torch.Tensor]:
    """Every module's change in float64, by tensor name, from PEFT's files alone."""
    config = json.loads((folder / CONFIG).read_text())
    tensors = {k: t.double() for k, t in load_file(folder / WEIGHTS).items()}
    out = {}
    for key, a in tensors.items():
        if key.endswith("lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            name = stem.removeprefix("base_model.model.")
            rank = config["rank_pattern"].get(name.replace(".", r"\."), config["r"])
            alpha = config["alpha_pattern"].get(name.replace(".", r"\."), config["lora_alpha"])
            out[f"{name}.weight"] = tensors[f"{stem}.lora_B.weight"] @ a * alpha / rank
    return out


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
    assert "0.1250 of the merged change" in text


def foreign(folder: Path, **config: Any) -> Path:
    """A LoRA not written by regraft, on q_proj of layer 0 (rank 4) and 1 (rank 2 under a
    pattern)."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    pattern = config.get("rank_pattern")
    tensors = {}
    for layer, rank in ((0, 4), (1, 2 if pattern else 4)):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, 64, generator=generator)
        tensors[f"{stem}.lora_B.weight"] = torch.randn(64, rank, generator=generator)
    if config.get("modules_to_save"):
        tensors["base_model.model.model.norm.weight"] = torch.ones(64)
    save_file(tensors, folder / WEIGHTS)
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": None}
    (folder / CONFIG).write_text(json.dumps({**plain, **config}))
    return folder


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


# Two checkpoints


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


# A checkpoint and an adapter


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


# Two adapters


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


# The command


def test_the_command_prints_one_json_object(folders: dict[str, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from regraft.cli import main; main()", "inspect",
         str(folders["base"]), str(folders["extended"]), "--json"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "checkpoints"


def test_command_prints_tables_or_a_one_line_error(folders: dict[str, Path]) -> None:
    person = CliRunner().invoke(app, ["inspect", str(folders["lora"])])
    assert person.exit_code == 0
    assert "loads in vLLM" in person.stdout
    nothing = CliRunner().invoke(app, ["inspect", str(folders["base"].parent)])
    assert (nothing.exit_code, nothing.stdout) == (2, "")
    assert nothing.stderr.startswith("regraft: ")
    assert nothing.stderr.count("\n") == 1
