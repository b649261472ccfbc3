"""`inspect`: what it says of every kind of folder, checked against direct float64 computation."""

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
from regraft.adapters.inspect.inspect import inspect_model, tables
from regraft.adapters.reader import CONFIG, RECORD, WEIGHTS
from regraft.cli import app
from regraft.errors import CheckpointError, InputError
from regraft.merge.job import merge_models

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


def shown(result: dict[str, Any], width: int = 80) -> str:
    """What a person sees; it must be JSON, too."""
    assert json.loads(json.dumps(result)) == result
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
    found = inspect_model(str(folders["base"]))
    state = load(folders["base"])
    assert found["kind"] == "checkpoint"
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["parameters"] == sum(t.numel() for t in state.values())
    assert found["bytes"] == 2 * found["parameters"]
    assert (found["dtypes"], found["shards"]) == ({"bfloat16": len(state)}, 2)
    assert [found[k] for k in ("layers", "hidden_size", "heads", "kv_heads", "head_dim")] == [
        2, 64, 4, 2, 16,
    ]  # fmt: skip
    assert (found["vocabulary"], found["tied"]) == (80, False)
    assert found["context"]["theta"] == 10000
    assert found["context"]["max_position_embeddings"] == 256
    assert found["context"]["longest_wavelength"] == pytest.approx(
        2 * math.pi * 10000 ** (14 / 16), rel=1e-9
    )
    assert found["fingerprint"].startswith("sampled:")
    assert found["roles"]["projection"] == {"tensors": 14, "parameters": 61440}
    assert (found["unknown_tensors"], found["tokenizer_max_length"]) == ([], None)
    assert "theta 10000, 256" in shown(found)


def test_a_tied_head_that_is_stored_counts_once(tmp_path: Path) -> None:
    config = {**LLAMA, "tie_word_embeddings": True}
    state = weights(config)
    once = inspect_model(str(save(tmp_path / "once", config, state)))
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    twice = inspect_model(str(save(tmp_path / "twice", config, state)))
    assert once["tied"]
    assert twice["tied"]
    assert once["parameters"] == twice["parameters"]


def test_strange_tensors_and_a_short_tokenizer_are_named(tmp_path: Path) -> None:
    state = weights(LLAMA) | {"model.layers.0.self_attn.rank.weight": torch.ones(3)}
    folder = save(tmp_path / "model", {**LLAMA, **LONG}, state)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 256}')
    found = inspect_model(str(folder))
    assert found["unknown_tensors"] == ["model.layers.0.self_attn.rank.weight"]
    assert found["parameters"] == sum(t.numel() for t in state.values()) - 3
    assert found["tokenizer_max_length"] == 256
    text = shown(found)
    assert "truncates at 256" in text
    assert "self_attn.rank.weight" in text


def test_a_tokenizer_without_a_limit_says_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", LLAMA, weights(LLAMA))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert inspect_model(str(folder))["tokenizer_max_length"] is None


def test_a_model_without_rope_is_no_error(tmp_path: Path) -> None:
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 32, "n_layer": 1,
        "n_head": 2, "n_positions": 64, "vocab_size": 50,
    }  # fmt: skip
    found = inspect_model(str(save(tmp_path / "gpt2", config, weights(config))))
    assert (found["context"], found["context_text"]) == (None, "no RoPE in the config")
    assert (found["layers"], found["hidden_size"], found["kv_heads"]) == (1, 32, 2)
    assert "no RoPE" in shown(found)


def test_a_config_at_odds_with_itself_is_shown_not_raised(tmp_path: Path) -> None:
    config = {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}
    found = inspect_model(str(save(tmp_path / "model", config, weights(LLAMA))))
    assert found["context"] is None
    assert "contradicts itself" in shown(found)


def test_markup_in_a_name_is_only_text(tmp_path: Path) -> None:
    folder = save(tmp_path / "[bold]m[/bold]", LLAMA, weights(LLAMA))
    assert "[bold]m[/bold]" in shown(inspect_model(str(folder)), 200)


def test_the_command_prints_no_markup(folders: dict[str, Path]) -> None:
    done = CliRunner().invoke(app, ["inspect", str(folders["base"]), str(folders["extended"])])
    assert done.exit_code == 0, done.output
    assert "Effective rank: of D" in done.stdout
    assert "[dim]" not in done.stdout


# What regraft made


def test_a_graft_says_what_it_was_made_from(folders: dict[str, Path]) -> None:
    found = inspect_model(str(folders["graft"]))
    assert found["kind"] == "graft"
    assert found["made"]["adapter"] == str(folders["lora"])
    assert found["made"]["checkpoint"] == str(folders["derivative"])
    assert found["context"]["theta"] == LONG["rope_theta"]
    assert "Made from" in shown(found)


def test_a_merge_says_its_method_and_inputs(folders: dict[str, Path], tmp_path: Path) -> None:
    base = folders["base"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"merge_method: ties\nbase_model: {base}\nparameters: {{weight: 1}}\n"
        f"models: [{{model: {base}}}]\n"
    )
    merge_models(recipe, tmp_path / "merged")
    found = inspect_model(str(tmp_path / "merged"))
    assert (found["kind"], found["made"]["inputs"]) == ("merge", [str(base)])
    assert "ties (native)" in shown(found)


def test_a_broken_record_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = save(tmp_path / "model", LLAMA, weights(LLAMA))
    (folder / RECORD).write_text('{"kind": "graft"}')
    with pytest.raises(CheckpointError, match=r"regraft\.json lacks the key 'adapter'"):
        inspect_model(str(folder))


def test_a_folder_that_is_nothing_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a model .* nor an adapter") as caught:
        inspect_model(str(tmp_path))
    assert "\n" not in str(caught.value)
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


def test_an_adapter_is_measured_as_its_dense_change_would_be(folders: dict[str, Path]) -> None:
    found = inspect_model(str(folders["lora"]))
    changes = dense(folders["lora"])
    total = math.sqrt(sum(float(d.square().sum()) for d in changes.values()))
    assert found["kind"] == "adapter"
    assert found["base"] == str(folders["base"])
    assert (found["rank_min"], found["rank_max"], found["layout"]) == (4, 4, "portable")
    assert found["change_norm"] == pytest.approx(total, rel=1e-6)
    assert found["leaves"]["q_proj"]["modules"] == 2
    for name, fact in found["modules"].items():
        assert fact["change_norm"] == pytest.approx(float(changes[name].norm()), rel=1e-6)
        assert fact["effective_rank"] == pytest.approx(
            direct_effective_rank(changes[name]), rel=1e-5
        )
    assert found["context"]["extended"]["max_position_embeddings"] == 2048
    assert "--max-lora-rank 8" in found["readers"]["vLLM"]
    text = shown(found)
    assert "theta 10000, 256  ->  theta 160000, 2k" in text
    assert "of the projections' change" in text


def test_an_adapter_that_was_merged_says_of_what(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    shutil.copytree(folders["lora"], folder)
    record = json.loads((folder / RECORD).read_text())
    merge = {"method": "ties", "recipe": "", "inputs": ["one"], "exact": False}
    record |= {"made_by": "merge", "merge": merge}
    record["totals"]["error"] = 0.125
    del record["extraction"]
    (folder / RECORD).write_text(json.dumps(record))
    text = shown(inspect_model(str(folder)))
    assert "by ties from one" in text
    assert "0.1250 of the merged change" in text


def foreign(folder: Path, **config: Any) -> Path:
    """A LoRA as others save it, on q_proj of layer 0 (rank 4) and 1 (rank 2 under a pattern)."""
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
    ("config", "said"),
    [
        ({}, "with --max-lora-rank 8"),
        (
            {"rank_pattern": {"layers.1.self_attn.q_proj": 2}},
            "no: it ignores rank and alpha",
        ),
        ({"modules_to_save": ["norm"]}, "no: it refuses whole tensors (1 in modules_to_save)"),
    ],
)
def test_who_can_load_an_adapter(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    found = inspect_model(str(foreign(tmp_path / "lora", **config)))
    assert said in found["readers"]["vLLM"]
    assert found["readers"]["PEFT"] == "yes"
    assert found["totals"] is None
    assert "not carried" in shown(found)


def test_scaling_is_peft_s(tmp_path: Path) -> None:
    found = inspect_model(str(foreign(tmp_path / "plain")))
    assert (found["scaling_min"], found["scaling_max"]) == (2.0, 2.0)
    stabilised = inspect_model(str(foreign(tmp_path / "rs", use_rslora=True)))
    assert stabilised["scaling_max"] == 4.0
    assert "rsLoRA" in shown(stabilised)


def test_an_adapter_regraft_cannot_apply_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use_dora=True"):
        inspect_model(str(foreign(tmp_path / "dora", use_dora=True)))


# Two checkpoints


def test_the_figures_are_those_of_direct_computation(folders: dict[str, Path]) -> None:
    found = inspect_model(str(folders["base"]), str(folders["extended"]))
    b = {k: t.double() for k, t in load(folders["base"]).items()}
    e = {k: t.double() for k, t in load(folders["extended"]).items()}

    def check(row: dict[str, Any], names: list[str]) -> None:
        x = torch.cat([b[name].flatten() for name in names])
        y = torch.cat([e[name].flatten() for name in names])
        assert row["delta_norm"] == pytest.approx(float((y - x).norm()), rel=1e-5)
        assert row["relative_delta"] == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-5)
        assert row["cosine"] == pytest.approx(float(x @ y / (x.norm() * y.norm())), abs=2e-7)

    assert found["kind"] == "checkpoints"
    assert found["relation"]["verdict"] == "relative"
    assert sorted(found["tensors"]) == sorted(b)
    check(found["total"], list(b))
    check(found["roles"]["projection"], [n for n in b if "proj" in n])
    check(found["layers"]["1"], [n for n in b if ".layers.1." in n])
    check(found["leaves"]["q_proj"], [n for n in b if "q_proj" in n])
    for name, row in found["tensors"].items():
        check(row, [name])
        if "proj" in name:
            exact = direct_effective_rank(e[name] - b[name])
            assert row["effective_rank"] == pytest.approx(exact, rel=1e-5)
            top = float(torch.linalg.matrix_norm(e[name] - b[name], 2))
            assert row["spectral_norm"] == pytest.approx(top, rel=1e-4)
    assert found["total"]["changed"] == 14
    assert found["context"]["same"] is False
    text = shown(found)
    assert "theta 10000, 256  ->  theta 160000, 2k" in text
    assert "relatives" in text


def test_a_change_by_rounding_alone_has_nothing_above_the_noise(tmp_path: Path) -> None:
    config = {**LLAMA, "hidden_size": 128, "intermediate_size": 256}
    state = weights(config)
    one = save(tmp_path / "one", config, state)
    two = save(tmp_path / "two", config, state, dtype=torch.bfloat16)
    noise = inspect_model(str(one), str(two))["roles"]["projection"]["above_noise"]
    real = save(tmp_path / "real", config, changed(state, rank=4, size=0.1, seed=1))
    signal = inspect_model(str(one), str(real))["roles"]["projection"]["above_noise"]
    assert noise < 0.05
    assert signal > 0.99


def test_equal_models_are_called_the_same(folders: dict[str, Path]) -> None:
    found = inspect_model(str(folders["base"]), str(folders["base"]))
    assert found["relation"]["verdict"] == "same"
    assert (found["total"]["changed"], found["total"]["cosine"]) == (0, 1.0)
    assert "every one compared" in shown(found)


def test_strangers_and_added_rows_and_odd_tensors_are_named(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    state = weights({**LLAMA, "vocab_size": 83}, seed=9)
    del state["model.norm.weight"]
    state["model.extra"] = torch.ones(2)
    state["model.layers.0.mlp.up_proj.weight"] = torch.ones(97, 64)
    other = save(tmp_path / "other", {**LLAMA, "vocab_size": 83}, state)
    found = inspect_model(str(folders["base"]), str(other))
    assert found["relation"]["verdict"] == "stranger"
    assert found["only_in_first"] == ["model.norm.weight"]
    assert found["only_in_second"] == ["model.extra"]
    assert list(found["not_comparable"]) == ["model.layers.0.mlp.up_proj.weight"]
    assert found["rows_added"] == {"lm_head.weight": 3, "model.embed_tokens.weight": 3}
    x = load(folders["base"])["model.embed_tokens.weight"].double()
    delta = state["model.embed_tokens.weight"][:80].double() - x
    row = found["tensors"]["model.embed_tokens.weight"]
    assert row["delta_norm"] == pytest.approx(float(delta.norm()), rel=1e-5)
    text = shown(found)
    assert "strangers" in text
    assert "3 rows added" in text


# A checkpoint and an adapter


def test_an_adapter_fits_a_relative_in_either_order(folders: dict[str, Path]) -> None:
    found = inspect_model(str(folders["derivative"]), str(folders["lora"]))
    assert found == inspect_model(str(folders["lora"]), str(folders["derivative"]))
    assert (found["fits"], found["refused"]) == (True, [])
    assert found["relation"]["verdict"] == "relative"
    assert found["relation"]["roles"]["projection"]["distance"] == pytest.approx(0.02, rel=0.1)
    assert found["context"]["output"] == "theta 160000, 2k"
    assert "would go through" in shown(found)


def test_what_apply_would_refuse_is_said_with_its_reason(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    done = inspect_model(str(folders["lora"]), str(folders["extended"]))
    assert "change" in done["refused"][0]
    assert done["relation"]["verdict"] == "relative"
    stranger = save(tmp_path / "stranger", {**LLAMA, "rope_theta": 7e4}, weights(LLAMA, seed=5))
    found = inspect_model(str(folders["lora"]), str(stranger))
    assert found["fits"]
    assert found["relation"]["verdict"] == "stranger"
    assert found["context"]["output"] is None
    assert "say which to use" in found["refused"][0]
    assert "would refuse" in shown(found)
    wide = {**LLAMA, "hidden_size": 32}
    misfit = inspect_model(str(save(tmp_path / "wide", wide, weights(wide))), str(folders["lora"]))
    assert not misfit["fits"]
    assert "give a checkpoint of the adapter's architecture" in shown(misfit, 200)


def test_a_pair_below_the_working_folder_is_looked_at_all_the_same(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders["lora"].parent)
    result = inspect_model("lora", "derivative")
    assert result["refused"] == []
    assert result["relation"]["verdict"] == "relative"


# Two adapters


def test_two_adapters_are_compared_as_their_dense_changes_would_be(
    folders: dict[str, Path],
) -> None:
    found = inspect_model(str(folders["lora"]), str(folders["other"]))
    one, other = dense(folders["lora"]), dense(folders["other"])
    assert (found["base"]["same"], found["base"]["how"]) == (True, "fingerprint")
    assert found["context_same"] is False
    for name, fact in found["modules"].items():
        x, y = one[name], other[name]
        assert fact["norm"] == pytest.approx(float(x.norm()), rel=1e-6)
        assert fact["other_norm"] == pytest.approx(float(y.norm()), rel=1e-6)
        cosine = float((x * y).sum() / (x.norm() * y.norm()))
        assert fact["cosine"] == pytest.approx(cosine, abs=1e-6)
        (u, _, v), (u2, _, v2) = torch.linalg.svd(x), torch.linalg.svd(y)
        left = (u[:, :4].T @ u2[:, :6]).square().sum() / 4
        right = (v[:4] @ v2[:6].T).square().sum() / 4
        assert fact["overlap"] == pytest.approx(float(left + right) / 2, rel=1e-4)
    x, y = (torch.cat([d[n].flatten() for n in one]) for d in (one, other))
    assert found["total"]["cosine"] == pytest.approx(float(x @ y / (x.norm() * y.norm())), abs=1e-6)
    assert "by chance" in shown(found)


def test_an_adapter_overlaps_itself_wholly(folders: dict[str, Path], tmp_path: Path) -> None:
    found = inspect_model(str(folders["lora"]), str(folders["lora"]))
    assert found["total"]["cosine"] == pytest.approx(1.0)
    assert found["total"]["overlap"] == pytest.approx(1.0)
    apart = inspect_model(str(folders["lora"]), str(foreign(tmp_path / "foreign")))
    assert apart["base"] == {"same": None, "how": "name"}
    assert len(apart["only_in_first"]) == 12
    shown(apart)


# The command


def test_the_command_prints_one_json_object(folders: dict[str, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from regraft.cli import main; main()", "inspect",
         str(folders["base"]), str(folders["extended"]), "--json"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "checkpoints"


def test_the_command_prints_tables_or_one_line_of_what_is_wrong(folders: dict[str, Path]) -> None:
    person = CliRunner().invoke(app, ["inspect", str(folders["lora"])])
    assert person.exit_code == 0
    assert "loads in vLLM" in person.stdout
    nothing = CliRunner().invoke(app, ["inspect", str(folders["base"].parent)])
    assert (nothing.exit_code, nothing.stdout) == (2, "")
    assert nothing.stderr.startswith("regraft: ")
    assert nothing.stderr.count("\n") == 1
