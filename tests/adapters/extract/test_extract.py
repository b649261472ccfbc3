"""extract-lora on real files: what PEFT makes of the adapter, what the record claims, what dies."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft.adapters import writer
from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract import evidence
from regraft.adapters.extract.extract import extract_lora
from regraft.adapters.reader import Adapter
from regraft.adapters.serving import PORTABLE_CAP
from regraft.errors import CheckpointError, InputError, LineageError
from regraft.records import to_json

pytestmark = pytest.mark.usefixtures("undrawn")
LEAVES = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> tuple[Path, Path, Path]:
    return models.family(tmp_path_factory.mktemp("family"))


def everything_changed(config: dict[str, Any], rank: int | None = None) -> tuple[State, State]:
    """Weights, and weights of which every tensor differs: norms, biases, embedding and head too."""
    base = models.weights(config)
    generator = torch.Generator().manual_seed(4)
    extended = models.changed(base, rank=rank, size=0.03, seed=1, names="")
    for name, tensor in extended.items():
        if tensor.ndim == 1:
            extended[name] = tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
    return base, extended


def save_pair(folder: Path, config: dict[str, Any], base: State, extended: State, **how: Any):
    return (
        models.save(folder / "base", config, base, **how),
        models.save(folder / "extended", {**config, **models.LONG}, extended, **how),
    )


def merged_by_peft(base: Path, adapter: Path) -> State:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    state = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    return {name: tensor.clone() for name, tensor in state.items()}


def changes(adapter: Path) -> State:
    """Weight name -> B A of the adapter, in float64."""
    lora = Adapter.open(adapter)
    found = {}
    for name in lora.modules:
        b, a = lora.factors(name)
        found[name] = b.double() @ a.double()
    return found


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def record_of(adapter: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return dict(json.loads((adapter / "regraft.json").read_text(), parse_constant=refuse))


# What PEFT makes of it.


def test_portable_is_what_every_server_reads(family, tmp_path):
    record = extract_lora(*family[:2], tmp_path / "a", rank=8)
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 8
    assert config["target_modules"] == LEAVES
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["modules_to_save"] is None
    assert (config["use_dora"], config["use_rslora"], config["bias"]) == (False, False, "none")
    tensors = load_file(tmp_path / "a/adapter_model.safetensors")
    assert len(tensors) == 2 * 14
    for name, tensor in tensors.items():
        assert re.fullmatch(
            rf"base_model\.model\.model\.layers\.\d\.\w+\.({'|'.join(LEAVES)})\.lora_[AB]\.weight",
            name,
        )
        assert tensor.dtype == torch.bfloat16
        assert tensor.shape[0 if "lora_A" in name else 1] == 8
    assert to_json(record) == record_of(tmp_path / "a")


@pytest.mark.parametrize("layout", ["portable", "compact", "exact"])
def test_peft_rebuilds_what_was_extracted_in_every_layout(layout, tmp_path):
    """Twelve layers, a rank of its own for each: a pattern for layers.1 must not hit layers.11."""
    weights = models.weights(models.DEEP)
    extended = dict(weights)
    for layer in range(12):
        part = models.changed(
            weights, rank=1 + layer, size=0.03, seed=layer, names=f"layers.{layer}.self_attn"
        )
        extended |= {name: part[name] for name in part if f"layers.{layer}.self_attn" in name}
    base, long = save_pair(tmp_path, models.DEEP, weights, extended)
    extract_lora(base, long, tmp_path / "a", rank="auto", layout=layout, dtype="float32")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    if layout == "portable":
        assert config["r"] == 12
        assert config["rank_pattern"] == {}
    else:
        assert len(config["rank_pattern"]) == 11 * 4
        assert config["rank_pattern"] == config["alpha_pattern"]
    merged = merged_by_peft(base, tmp_path / "a")
    ours = changes(tmp_path / "a")
    assert len(ours) == 48
    for name, tensor in merged.items():
        wanted = extended[name]
        torch.testing.assert_close(tensor, wanted, atol=2e-6, rtol=0, msg=name)
        if name in ours:
            assert relative(ours[name], wanted.double() - weights[name].double()) < 1e-4


def test_logits_of_base_and_adapter_are_those_of_the_extended_model(family, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, long, _ = family
    extract_lora(base, long, tmp_path / "a", rank=4, dtype="float32")
    tokens = torch.arange(1, 60)[None]
    wanted = AutoModelForCausalLM.from_pretrained(long)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.config.rope_parameters = wanted.config.rope_parameters
    model.model.rotary_emb = wanted.model.rotary_emb
    with torch.no_grad():
        plain = model(tokens).logits
        adapted = PeftModel.from_pretrained(model, tmp_path / "a")(tokens).logits
        truth = wanted(tokens).logits
    torch.testing.assert_close(adapted, truth, atol=1e-5, rtol=1e-4)
    assert (plain - truth).abs().max() > 100 * (adapted - truth).abs().max()


@pytest.mark.parametrize("config", [models.LLAMA, models.TIED, models.QWEN2, models.GEMMA2])
def test_exact_at_full_rank_carries_the_whole_difference(config, tmp_path):
    weights, extended = everything_changed(config)
    base, long = save_pair(tmp_path, config, weights, extended)
    record = extract_lora(base, long, tmp_path / "a", rank=96, layout="exact", dtype="float32")
    assert not record.extraction.not_captured
    assert record.totals.share_of_all_change_not_captured < 1e-9
    kinds = {name.rpartition(".")[2] for name in record.differences}
    assert kinds == ({"weight", "bias"} if config is models.QWEN2 else {"weight"})
    apply_lora(tmp_path / "a", base, tmp_path / "out", context="adapter")
    rebuilt = models.load(tmp_path / "out")
    assert rebuilt.keys() == extended.keys()
    for name, tensor in rebuilt.items():
        torch.testing.assert_close(tensor, extended[name], atol=3e-7, rtol=3e-7, msg=name)


# What is chosen.


def test_unchanged_modules_are_skipped_and_peft_makes_no_empty_factors_for_them(tmp_path):
    weights = models.weights(models.LLAMA)
    extended = models.changed(weights, rank=3, size=0.03, seed=1, names="layers.1.self_attn.q_proj")
    base, long = save_pair(tmp_path, models.LLAMA, weights, extended)
    record = extract_lora(base, long, tmp_path / "a", rank=3)
    assert list(record.modules) == ["model.layers.1.self_attn.q_proj"]
    assert len(record.extraction.unchanged) == 13
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    assert len(load_file(tmp_path / "a/adapter_model.safetensors")) == 2


@pytest.mark.parametrize(
    ("selector", "count"),
    [
        ("all-linear", 14),
        ("attention", 8),
        ("mlp", 6),
        ("q_proj", 2),
        ("q_proj, v_proj", 4),
        (r"model\.layers\.0\..*", 7),
        (r"model\.layers\.\d{1,2}\.mlp\.up_proj,k_proj", 4),
        ("all-linear,embed_tokens,lm_head", 16),
        ("q_proj,attention", 8),
    ],
)
def test_modules_are_chosen_by_group_name_or_regex(selector, count, family, tmp_path):
    plan = extract_lora(*family[:2], tmp_path / "a", rank=2, modules=selector, dry_run=True)
    assert plan.plan["modules"] == count


def test_a_part_of_the_modules_loads_in_peft(family, tmp_path):
    base, long, _ = family
    record = extract_lora(
        base, long, tmp_path / "a", rank=4, modules=r".*layers\.0.*q_proj,mlp", dtype="float32"
    )
    assert len(record.modules) == 7
    assert record.extraction.not_captured["projection"].changed == 7
    merged, wanted, before = (
        merged_by_peft(base, tmp_path / "a"), models.load(long), models.load(base),
    )  # fmt: skip
    for name, tensor in merged.items():
        taken = name.removesuffix(".weight") in record.modules
        torch.testing.assert_close(tensor, (wanted if taken else before)[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"modules": "no_such"}, "--modules 'no_such' names no matrix"),
        ({"modules": "q_proj,"}, "--modules '' names no matrix"),
        ({"modules": "layers.(0"}, "is not a regular expression"),
        ({"dtype": "int8"}, "--dtype 'int8' is not one of"),
        ({"layout": "tiny"}, "--layout 'tiny' is not one of"),
        ({"rank": 0}, "--rank 0 is too small"),
        ({"rank": PORTABLE_CAP + 1}, "more than the 512"),
        ({"budget": "1kB"}, "--budget 1000 is less than"),
        ({"budget": "1kB", "layout": "compact"}, "--budget 1000 is less than"),
        ({"budget": "lots"}, "'lots' is not a size"),
        ({"energy": 2.0}, "is not a share"),
        ({"device": "tpu"}, "--device 'tpu' is not"),
        ({"device": "cuda:99"}, "sees no such GPU"),
    ],
)
def test_arguments_are_checked_before_any_work(arguments, said, family, tmp_path):
    with pytest.raises(InputError, match=re.escape(said)) as refused:
        extract_lora(*family[:2], tmp_path / "a", **arguments)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


# Vocabularies and heads.


def test_the_embedding_of_a_tied_model_is_a_target_and_its_head_is_refused(tmp_path):
    weights, extended = everything_changed(models.TIED, rank=3)
    base, long = save_pair(tmp_path, models.TIED, weights, extended)
    with pytest.raises(InputError, match="--modules 'lm_head' names no matrix"):
        extract_lora(base, long, tmp_path / "a", modules="lm_head")
    extract_lora(
        base, long, tmp_path / "a", rank=3, modules="all-linear,embed_tokens", dtype="float32"
    )
    merged = merged_by_peft(base, tmp_path / "a")
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        torch.testing.assert_close(merged[name], extended[name], atol=1e-6, rtol=0)


def test_a_tied_head_that_is_stored_counts_once(tmp_path):
    weights, extended = everything_changed(models.TIED, rank=3)
    for state in (weights, extended):
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    base, long = save_pair(tmp_path, models.TIED, weights, extended)
    with pytest.raises(InputError, match="--modules 'lm_head' names no matrix"):
        extract_lora(base, long, tmp_path / "a", modules="lm_head")
    record = extract_lora(base, long, tmp_path / "a", rank=3, layout="exact")
    assert "lm_head.weight" not in record.differences
    assert "model.embed_tokens.weight" in record.differences


def test_a_head_that_only_one_model_has_is_said(tmp_path):
    weights, extended = everything_changed(models.TIED, rank=3)
    apart = {**models.TIED, "tie_word_embeddings": False, **models.LONG}
    base = models.save(tmp_path / "base", models.TIED, weights)
    head = extended["model.embed_tokens.weight"] + 0.1
    long = models.save(tmp_path / "long", apart, {**extended, "lm_head.weight": head})
    with pytest.warns(UserWarning, match="has a head of its own"):
        record = extract_lora(base, long, tmp_path / "a", rank=3)
    assert "has a head of its own" in record.extraction.notes[0]
    with pytest.warns(UserWarning, match="has a head of its own"):
        extract_lora(long, base, tmp_path / "b", rank=3, force=True)
    stored = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    models.save(base, models.TIED, stored)
    with pytest.raises(InputError, match=r"names the head of .* tied to the embedding"):
        extract_lora(base, long, tmp_path / "c", rank=3, modules="lm_head")


@pytest.mark.parametrize(("before", "after"), [(80, 88), (88, 80)])
def test_added_tokens_on_either_side_leave_the_shared_rows(before, after, tmp_path):
    wide = {**models.LLAMA, "vocab_size": 88}
    weights, extended = everything_changed(wide, rank=3)

    def cut(state: State, rows: int) -> State:
        return {k: (v[:rows].clone() if v.shape[0] == 88 else v) for k, v in state.items()}

    base = models.save(tmp_path / "b", {**wide, "vocab_size": before}, cut(weights, before))
    long = models.save(
        tmp_path / "e", {**wide, "vocab_size": after, **models.LONG}, cut(extended, after)
    )
    record = extract_lora(
        base, long, tmp_path / "a", rank=3, dtype="float32",
        modules="all-linear,embed_tokens,lm_head",
    )  # fmt: skip
    assert record.modules["lm_head"].shape == [80, 64]
    merged = merged_by_peft(base, tmp_path / "a")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        torch.testing.assert_close(merged[name][:80], extended[name][:80], atol=1e-6, rtol=0)
        torch.testing.assert_close(merged[name][80:], weights[name][80:before])
    plain = extract_lora(base, long, tmp_path / "p", rank=3)
    assert plain.extraction.not_captured["head"].rows_not_shared == after - before


# Numbers.


def test_the_record_tells_the_error_that_the_stored_adapter_makes(tmp_path):
    weights, extended = everything_changed(models.LLAMA)
    base, long = save_pair(tmp_path, models.LLAMA, weights, extended, dtype=torch.bfloat16)
    before, after = models.load(base), models.load(long)
    record = extract_lora(base, long, tmp_path / "a", rank=6)
    assert to_json(record) == record_of(tmp_path / "a")
    rebuilt = changes(tmp_path / "a")
    missed = total = 0.0
    for name, fact in record.modules.items():
        delta = after[f"{name}.weight"].double() - before[f"{name}.weight"].double()
        values = torch.linalg.svdvals(delta).square()
        squared = float(delta.square().sum())
        error = relative(rebuilt[f"{name}.weight"], delta)
        optimum = math.sqrt(float(values[6:].sum()) / squared)
        assert fact.shape == list(delta.shape)
        assert fact.rank == 6
        assert fact.delta_norm == pytest.approx(math.sqrt(squared), rel=1e-5)
        assert fact.relative_delta == pytest.approx(
            relative(after[f"{name}.weight"], before[f"{name}.weight"]), rel=1e-5
        )
        assert fact.error == pytest.approx(error, rel=1e-5)
        assert fact.truncation.truncation_error == pytest.approx(optimum, rel=1e-4)
        assert fact.truncation.energy == pytest.approx(1 - optimum**2, rel=1e-4)
        assert 1 <= fact.truncation.error_bound_over_optimum <= 1.001
        assert fact.truncation.spectrum == pytest.approx(values[:6].sqrt().tolist(), rel=1e-3)
        missed, total = missed + error**2 * squared, total + squared
    assert record.totals.error == pytest.approx(math.sqrt(missed / total), rel=1e-5)
    assert record.totals.energy == pytest.approx(1 - missed / total, rel=1e-5)
    rest = {
        "embedding": ["model.embed_tokens.weight"],
        "head": ["lm_head.weight"],
        "norm": [name for name in before if "norm" in name],
    }
    squares = {
        role: [float((after[n].double() - before[n].double()).square().sum()) for n in names]
        for role, names in rest.items()
    }
    everything = total + sum(map(sum, squares.values()))
    assert record.extraction.not_captured.keys() == rest.keys()
    for role, fact in record.extraction.not_captured.items():
        assert fact.tensors == fact.changed == len(rest[role])
        assert fact.delta_norm == pytest.approx(math.sqrt(sum(squares[role])), rel=1e-5)
        assert fact.share_of_all_change == pytest.approx(sum(squares[role]) / everything, rel=1e-5)
        assert fact.largest_relative_delta == pytest.approx(
            max(relative(after[n], before[n]) for n in rest[role]), rel=1e-5
        )
    assert record.totals.share_of_all_change_not_captured == pytest.approx(
        (missed + sum(map(sum, squares.values()))) / everything, rel=1e-5
    )
    size = sum(t.nbytes for t in load_file(tmp_path / "a/adapter_model.safetensors").values())
    assert record.totals.bytes == size


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_rounding_of_the_factors_counts_as_error(dtype, family, tmp_path):
    base, long, _ = family
    record = extract_lora(base, long, tmp_path / "a", rank=4, dtype=dtype, verify=False)
    before, after, rebuilt = models.load(base), models.load(long), changes(tmp_path / "a")
    for name, fact in record.modules.items():
        delta = after[f"{name}.weight"].double() - before[f"{name}.weight"].double()
        error = relative(rebuilt[f"{name}.weight"], delta)
        assert fact.error == pytest.approx(error, rel=1e-2)
        assert fact.rounding_error == pytest.approx(error, rel=1e-2)
        assert fact.truncation.truncation_error < 1e-4


@pytest.mark.parametrize("layout", ["portable", "compact"])
@pytest.mark.parametrize("budget", [12_000, 30_000, 60_000])
def test_a_budget_holds_on_disk(layout, budget, tmp_path, family):
    record = extract_lora(*family[:2], tmp_path / "a", budget=budget, layout=layout, verify=False)
    assert (tmp_path / "a/adapter_model.safetensors").stat().st_size <= budget
    assert record.totals.rank_max >= 1


def test_a_budget_buys_at_least_what_a_uniform_rank_does(tmp_path):
    weights = models.weights(models.LLAMA)
    extended = {
        name: models.changed({name: w}, rank=1 + i % 9, size=0.001 * (1 + i % 5), seed=i)[name]
        for i, (name, w) in enumerate(weights.items())
    }
    base, long = save_pair(tmp_path, models.LLAMA, weights, extended)
    uniform = extract_lora(base, long, tmp_path / "u", budget=30_000)
    shared = extract_lora(base, long, tmp_path / "s", budget=30_000, layout="compact")
    assert shared.totals.error < uniform.totals.error
    ranks = {fact.rank for fact in shared.modules.values()}
    assert len(ranks) > 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
        (torch.float64, torch.float32),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_of_models_and_adapter_mix(before, after, dtype, tmp_path):
    weights = models.weights(models.LLAMA)
    extended = models.changed(weights, rank=4, size=0.05, seed=1)
    base = models.save(tmp_path / "b", models.LLAMA, weights, dtype=before)
    long = models.save(tmp_path / "e", {**models.LLAMA, **models.LONG}, extended, dtype=after)
    record = extract_lora(
        base, long, tmp_path / "a", rank="auto", dtype=dtype, modules="q_proj,down_proj",
        verify=dtype == "float16",
    )  # fmt: skip
    assert {fact.rank for fact in record.modules.values()} == {4}
    tensors = load_file(tmp_path / "a/adapter_model.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {getattr(torch, dtype)}


def test_a_change_below_the_noise_is_nothing_to_extract_under_auto(tmp_path):
    weights = models.weights(models.LLAMA)
    base = models.save(tmp_path / "base", models.LLAMA, weights)
    rounded = {name: w.bfloat16().float() for name, w in weights.items()}
    long = models.save(tmp_path / "long", {**models.LLAMA, **models.LONG}, rounded)
    with pytest.raises(InputError, match="Nothing to extract"):
        extract_lora(base, long, tmp_path / "a", rank="auto")
    assert not (tmp_path / "a").exists()
    extract_lora(base, long, tmp_path / "b", rank=2)  # a number is taken at its word


def test_modules_below_the_noise_are_named(tmp_path):
    weights = models.weights(models.LLAMA)
    extended = {name: w.bfloat16().float() for name, w in weights.items()}
    extended |= {
        name: w
        for name, w in models.changed(weights, rank=2, size=0.05, seed=1).items()
        if "layers.0" in name and "proj" in name
    }
    base, long = save_pair(tmp_path, models.LLAMA, weights, extended)
    record = extract_lora(base, long, tmp_path / "a", rank="auto", layout="compact")
    assert len(record.modules) == len(record.extraction.below_noise) == 7
    assert record.extraction.not_captured["projection below the noise"].changed == 7


def test_tensors_that_transformers_does_not_know_are_measured(tmp_path):
    weights, extended = everything_changed(models.LLAMA, rank=2)
    for state, value in ((weights, 1.0), (extended, 1.5)):
        state["model.layers.0.mlp.gates"] = torch.full((4, 4), value)
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.full((8,), value)
    base, long = save_pair(tmp_path, models.LLAMA, weights, extended)
    record = extract_lora(base, long, tmp_path / "a", rank=2)
    other = record.extraction.not_captured["other"]
    assert (other.tensors, other.largest_relative_delta) == (1, pytest.approx(0.5))


# Files.


def test_the_same_input_gives_the_same_bytes(tmp_path, monkeypatch):
    """Of matrices large enough for the randomised method, and with the figure."""
    monkeypatch.undo()
    config = {
        **models.LLAMA, "hidden_size": 320, "intermediate_size": 448, "num_hidden_layers": 1,
    }  # fmt: skip
    base, long, _ = models.family(tmp_path / "models", config=config, rank=12)
    for out in ("one", "two"):
        record = extract_lora(base, long, tmp_path / out, rank=8, layout="exact")
    assert {fact.truncation.method for fact in record.modules.values()} == {"subspace", "lapack"}
    one, two = models.contents(tmp_path / "one"), models.contents(tmp_path / "two")
    assert one == two
    assert {"extraction.png", "README.md", "regraft.json"} <= one.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "one", "two"]
    other = extract_lora(base, long, tmp_path / "three", rank=8, seed=1, verify=False)
    assert other.totals.error == pytest.approx(record.totals.error, rel=1e-3)


def test_how_a_model_is_sharded_changes_no_weight(tmp_path):
    single = models.family(tmp_path / "single")
    sharded = models.family(tmp_path / "sharded", shards=3)
    one = extract_lora(*single[:2], tmp_path / "one", rank=4, layout="exact", verify=False)
    two = extract_lora(*sharded[:2], tmp_path / "two", rank=4, layout="exact", verify=False)
    assert one.base.fingerprint == two.base.fingerprint
    a, b = (load_file(tmp_path / out / "adapter_model.safetensors") for out in ("one", "two"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_tensor_that_only_the_extended_model_has_is_spoken_of(family, tmp_path):
    state = models.load(family[1])
    state["model.layers.9.self_attn.q_proj.weight"] = torch.ones(4, 4)
    more = models.save(tmp_path / "more", {**models.LLAMA, **models.LONG}, state)
    record = extract_lora(family[0], more, tmp_path / "a", rank=2, dry_run=True)
    assert any("model.layers.9.self_attn.q_proj.weight" in note for note in record.extraction.notes)


@pytest.mark.parametrize("scale", [1e-28, 1e30])
def test_weights_whose_squares_float32_cannot_hold_are_extracted_like_others(
    scale, family, tmp_path
):
    figures = []
    for factor, folder in ((1.0, "plain"), (scale, "scaled")):
        pair = []
        for source, config in ((family[0], models.LLAMA), (family[1], models.LONG)):
            state = {name: tensor * factor for name, tensor in models.load(source).items()}
            pair.append(
                models.save(tmp_path / folder / source.name, {**models.LLAMA, **config}, state)
            )
        record = extract_lora(*pair, tmp_path / folder / "a", rank=2, dtype="float32", force=True)
        figures.append([record.totals.error, record.totals.error_bound_over_optimum])
    assert figures[1] == pytest.approx(figures[0], rel=1e-4)


def test_finite_numbers_too_far_apart_are_not_called_nan(family, tmp_path):
    pair = []
    for number, source in ((3e38, family[0]), (-3e38, family[1])):
        state = models.load(source)
        state["model.layers.1.mlp.up_proj.weight"][0, 0] = number
        config = models.LONG if source == family[1] else {}
        pair.append(models.save(tmp_path / source.name, {**models.LLAMA, **config}, state))
    with pytest.raises(CheckpointError, match="difference overflows float32"):
        extract_lora(*pair, tmp_path / "a", rank=2, force=True)


def test_an_adapter_that_reproduces_the_change_claims_no_ratio_to_nothing(family, tmp_path):
    """At full rank the least possible error is 0: what is reported is null, not infinity or 1."""
    record = extract_lora(*family[:2], tmp_path / "a", rank=64, dtype="float32")
    truncations = [module.truncation for module in record.modules.values()]
    assert None in {t.error_bound_over_optimum for t in truncations}
    assert record.totals.modules_without_bound > 0
    assert all(t.least_possible_error <= t.truncation_error for t in truncations)
    assert "reproduced to rounding" in dict(evidence.summary(record))["error"]
    assert record_of(tmp_path / "a") == to_json(record)


def test_a_dry_run_writes_nothing(family, tmp_path):
    plan = extract_lora(*family[:2], tmp_path / "a" / "b", rank=4, dry_run=True).plan
    assert plan["modules"] == 14
    assert plan["write_bytes"] == 14848
    assert list(tmp_path.iterdir()) == []


def test_the_card_links_the_hub_and_no_local_path(family, tmp_path):
    from regraft.adapters.extract.card import write_adapter_card
    from regraft.adapters.extract.evidence import summary

    record = extract_lora(*family[:2], tmp_path / "a", rank=4)
    card = (tmp_path / "a/README.md").read_text()
    head = card.split("---")[1]
    assert "base_model" not in head
    hub = replace(record.base, name="org/name@main", revision="0" * 40)
    record = replace(record, base=hub)
    write_adapter_card(tmp_path / "a", record, summary(record))
    head = (tmp_path / "a/README.md").read_text().split("---")[1]
    assert "base_model: org/name\n" in head
    assert '--hf-overrides \'{"rope_parameters": {' in card
    assert "--rope-freq-base 160000" in card
    assert "--max-lora-rank 8 " in card


def test_resume_after_kills_gives_the_same_bytes(family, tmp_path, children):
    base, long, _ = family
    line = [
        "extract-lora",
        base,
        long,
        "--layout",
        "exact",
        "--budget",
        "20kB",
        "--no-verify",
        "-q",
    ]
    whole = children.run(*line, "-o", tmp_path / "whole")
    assert whole["code"] == 0, whole["err"]
    again = [*line, "-o", tmp_path / "again", "--resume"]
    for share in (0.01, 0.15, 0.3, 0.02, 0.3, 0.1, 0.2):
        died = children.run(*again, die=1 + int(share * whole["calls"]))
        assert died["code"] == -9
        assert not (tmp_path / "again").exists()
    assert children.run(*again)["code"] == 0
    assert models.contents(tmp_path / "again") == models.contents(tmp_path / "whole")


def test_resume_does_not_repeat_what_is_done(family, tmp_path, monkeypatch):
    from regraft.adapters.extract.factorize import Factorizer

    done: list[str] = []
    decompose = Factorizer._decompose

    def counted(run: Any, module: Any, *arguments: Any) -> Any:
        if len(done) == 9:
            done.append("interrupted")
            raise KeyboardInterrupt
        done.append(module.name)
        return decompose(run, module, *arguments)

    monkeypatch.setattr(Factorizer, "_decompose", counted)
    with pytest.raises(KeyboardInterrupt):
        extract_lora(*family[:2], tmp_path / "a", rank=4, verify=False)
    with pytest.raises(InputError, match="--resume continues it"):
        extract_lora(*family[:2], tmp_path / "a", rank=4, verify=False)
    with pytest.raises(InputError, match="had other inputs or arguments"):
        extract_lora(*family[:2], tmp_path / "a", rank=3, verify=False, resume=True)
    extract_lora(*family[:2], tmp_path / "a", rank=4, verify=False, resume=True)
    done.remove("interrupted")
    assert len(done) == len(set(done)) == 14


def test_modules_are_summed_in_one_order_whatever_a_resumed_run_repeats(
    family, tmp_path, monkeypatch
):
    """A disk that failed while the spool was removed left some modules to do again, last."""
    from regraft.adapters.extract.factorize import Factorizer

    orders: list[list[str]] = []
    run_all = Factorizer.run

    def stopped(factorizer: Any) -> None:
        run_all(factorizer)
        orders.append(list(factorizer.decompositions))
        if len(orders) == 1:
            factorizer._spooled(factorizer._plan.modules[0]).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(Factorizer, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        extract_lora(*family[:2], tmp_path / "a", rank=4, verify=False)
    extract_lora(*family[:2], tmp_path / "a", rank=4, verify=False, resume=True)
    assert orders[0] == orders[1]


def test_a_kill_while_publishing_loses_neither_old_nor_new(family, tmp_path, children):
    base, long, _ = family
    line = ["extract-lora", base, long, "--no-verify", "-q"]
    calls = children.run(*line, "-o", tmp_path / "whole", "--rank", 4)["calls"]
    wanted = models.contents(tmp_path / "whole")
    old = models.contents(models.earlier_output(tmp_path / "old", config_json="keep"))
    for back in range(8):
        out = models.earlier_output(tmp_path / f"o{back}", config_json="keep")
        died = children.run(*line, "-o", out, "--rank", 4, "--overwrite", die=calls - back)
        assert died["code"] == -9
        left = [models.contents(path) for path in tmp_path.glob(f"*o{back}*") if path.is_dir()]
        assert old in left or any(wanted.items() <= found.items() for found in left)
        done = children.run(*line, "-o", out, "--rank", 4, "--overwrite", "--resume")
        assert done["code"] == 0, done["err"]
        assert models.contents(out) == wanted


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_full_disk_is_one_sentence_and_resumable(share, family, tmp_path, children):
    base, long, _ = family
    line = ["extract-lora", base, long, "--rank", 4, "--layout", "exact", "--no-verify", "-q"]
    whole = children.run(*line, "-o", tmp_path / "whole")
    full = children.run(*line, "-o", tmp_path / "again", fail=int(share * whole["calls"]))
    assert full["code"] == 1
    assert full["out"] == ""
    assert re.fullmatch(r"regraft: .*disk is full; make room\.\n", full["err"])
    assert not (tmp_path / "again").exists()
    assert children.run(*line, "-o", tmp_path / "again", "--resume")["code"] == 0
    assert models.contents(tmp_path / "again") == models.contents(tmp_path / "whole")


# Bad input.


def broken(folder: Path, source: Path, change: Any) -> Path:
    """A copy of a model with one thing wrong."""
    state = models.load(source)
    config = json.loads((source / "config.json").read_text())
    change(state, config)
    return models.save(folder, config, state)


def replace_one(name: str, value: Any) -> Any:
    def change(state: State, config: dict[str, Any]) -> None:
        state[name] = value(state[name])

    return change


DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"


def poisoned(value: float) -> Any:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return change


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [DOWN, NORM, "lm_head.weight"])
@pytest.mark.parametrize("which", [0, 1])
def test_nan_and_infinity_are_found_and_named(which, name, value, family, tmp_path):
    pair = list(family[:2])
    pair[which] = broken(tmp_path / "bad", pair[which], replace_one(name, poisoned(value)))
    with pytest.raises(CheckpointError, match=f"'{name}' of .*bad holds NaN") as refused:
        extract_lora(*pair, tmp_path / "a", rank=2, verify=False)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "a").exists()


def test_a_nan_between_the_samples_is_found(tmp_path):
    config = {**models.LLAMA, "intermediate_size": 512}
    weights, extended = everything_changed(config, rank=2)
    extended[DOWN].view(-1)[1::2][::7] = math.nan
    base, long = save_pair(tmp_path, config, weights, weights)
    models.save(long, {**config, **models.LONG}, extended)
    with pytest.raises(CheckpointError, match="holds NaN"):
        extract_lora(base, long, tmp_path / "a", rank=2)


def gone(name: str) -> Any:
    return lambda state, config: state.pop(name)


def other_type(state: State, config: dict[str, Any]) -> None:
    config["model_type"] = "mistral"
    config["architectures"] = ["MistralForCausalLM"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (gone(DOWN), f"lacks tensor '{DOWN}'"),
        (replace_one(DOWN, lambda t: t[:, :-1].contiguous()), f"'{DOWN}' is .* and "),
        (replace_one(NORM, lambda t: t[:-1].contiguous()), f"'{NORM}' is .* and "),
        (replace_one(DOWN, lambda t: t.to(torch.float8_e4m3fn)), "not quantised"),
        (replace_one(DOWN, lambda t: t.to(torch.int8)), "not quantised"),
        (other_type, "is a llama model and .* a mistral model"),
        (
            lambda state, config: (
                state.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)})
                or config.update({"attention_bias": True})
            ),
            "has tensor 'model.layers.0.self_attn.q_proj.bias', which",
        ),
    ],
)
def test_models_that_do_not_belong_together_are_refused_by_name(change, said, family, tmp_path):
    bad = tmp_path / "bad"
    state, config = models.load(family[1]), json.loads((family[1] / "config.json").read_text())
    change(state, config)
    models.save(bad, config, {})
    save_file({k: v.contiguous() for k, v in state.items()}, bad / "model.safetensors")
    with pytest.raises(CheckpointError, match=said) as refused:
        extract_lora(family[0], bad, tmp_path / "a")
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_a_quantised_base_is_refused(family, tmp_path):
    state = {k: v.contiguous() for k, v in models.load(family[0]).items()}
    state[DOWN] = state[DOWN].to(torch.int8)
    models.save(tmp_path / "bad", models.LLAMA, {})
    save_file(state, tmp_path / "bad/model.safetensors")
    with pytest.raises(CheckpointError, match=r"bad is stored as torch\.int8"):
        extract_lora(tmp_path / "bad", family[1], tmp_path / "a")


def test_swapped_identical_and_unrelated_models_are_refused(family, tmp_path):
    base, long, _ = family
    with pytest.raises(LineageError, match="swap them"):
        extract_lora(long, base, tmp_path / "a")
    with pytest.raises(InputError, match="hold the same weights"):
        extract_lora(base, base, tmp_path / "a", force=True)
    unrelated = models.save(
        tmp_path / "x", {**models.LLAMA, **models.LONG}, models.weights(models.LLAMA, seed=9)
    )
    with pytest.raises(LineageError, match=r"was not made from .*projection \d+\.\d%"):
        extract_lora(base, unrelated, tmp_path / "a")
    record = extract_lora(base, unrelated, tmp_path / "a", rank=2, force=True, verify=False)
    assert record.extraction.lineage.verdict == "stranger"
    assert extract_lora(long, base, tmp_path / "b", rank=2, force=True, verify=False)


def test_a_zero_bias_that_was_trained_gives_numbers_that_are_json(tmp_path):
    weights = models.weights(models.QWEN2)
    for name in weights:
        if name.endswith("bias"):
            weights[name].zero_()
    extended = models.changed(weights, rank=2, size=0.03, seed=1)
    for name in weights:
        if name.endswith("bias"):
            extended[name] = torch.full_like(weights[name], 0.1)
    base, long = save_pair(tmp_path, models.QWEN2, weights, extended)
    extract_lora(base, long, tmp_path / "a", rank=2)
    assert record_of(tmp_path / "a")["extraction"]["lineage"]["roles"]["bias"]["distance"] == 1.0


def test_factors_that_do_not_fit_the_dtype_are_refused(tmp_path):
    weights = models.weights(models.LLAMA)
    huge = {name: w * (1e12 if "proj" in name else 1) for name, w in weights.items()}
    extended = models.changed(huge, rank=2, size=0.5, seed=1)
    base, long = save_pair(tmp_path, models.LLAMA, huge, extended)
    with pytest.raises(InputError, match=r"too large for float16; choose a wider"):
        extract_lora(base, long, tmp_path / "a", rank=2, dtype="float16")


def test_an_output_inside_an_input_is_refused(family, tmp_path):
    base, long, _ = family
    before = models.contents(base)
    for out in (base, base / "sub", base.parent):
        with pytest.raises(InputError, match="overlaps the input"):
            extract_lora(base, long, out, rank=2, overwrite=True)
    assert models.contents(base) == before


def test_a_filled_output_is_only_replaced_when_asked(family, tmp_path):
    out = tmp_path / "a"
    out.mkdir()
    (out / "mine").write_text("keep")
    with pytest.raises(InputError, match="is not empty"):
        extract_lora(*family[:2], out, rank=2)
    with pytest.raises(InputError, match="is not one that regraft wrote"):
        extract_lora(*family[:2], out, rank=2, overwrite=True)
    assert models.contents(out) == {"mine": b"keep"}
    (out / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="is not one that regraft wrote"):
        extract_lora(*family[:2], out, rank=2, overwrite=True)
    models.earlier_output(out)
    extract_lora(*family[:2], out, rank=2, overwrite=True, verify=False)
    assert "mine" not in models.contents(out)


def test_an_adapter_that_peft_reads_differently_is_not_published(family, tmp_path, monkeypatch):
    honest = writer.peft_config

    def doubled(*arguments: Any, **named: Any) -> dict[str, Any]:
        config = honest(*arguments, **named)
        return {**config, "lora_alpha": 2 * config["r"]}

    monkeypatch.setattr(writer, "peft_config", doubled)
    with pytest.raises(CheckpointError, match=r"PEFT rebuilds '.*' 100\.\d+% away"):
        extract_lora(*family[:2], tmp_path / "a", rank=2)
    assert not (tmp_path / "a").exists()
    elsewhere = {"target_modules": ["nothing"]}
    monkeypatch.setattr(writer, "peft_config", lambda *a, **n: {**honest(*a, **n), **elsewhere})
    with pytest.raises(CheckpointError, match="PEFT does not load the adapter"):
        extract_lora(*family[:2], tmp_path / "b", rank=2)
    monkeypatch.setattr(writer, "peft_config", lambda *a, **n: {**honest(*a, **n), "r": 3})
    with pytest.raises(CheckpointError, match="says 3; the config belongs to another"):
        extract_lora(*family[:2], tmp_path / "c", rank=2, verify=False)


def test_a_config_that_does_not_fit_the_weights_is_refused_before_any_work(family, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(family[0], base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "head_dim": 1_000_000_000}))
    with pytest.raises(CheckpointError, match=r"has the shape .* and config\.json makes it"):
        extract_lora(base, family[1], tmp_path / "out")
