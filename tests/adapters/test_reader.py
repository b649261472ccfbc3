"""Adapter folders from elsewhere: what is read, what is refused, and in which words."""

from __future__ import annotations

import json
import math
from pathlib import Path

import models
import pytest
import torch
from hub_server import HubServer
from peft_folders import Q, adapter
from safetensors.torch import load_file, save_file

from regraft.adapters.extract.extract import extract_lora
from regraft.adapters.folder import LINEAGE
from regraft.adapters.reader import Adapter, is_adapter
from regraft.adapters.writer import AdapterModule, peft_config
from regraft.checkpoint.finite import LARGEST_NORM
from regraft.errors import CheckpointError, RegraftError


@pytest.fixture(scope="module")
def extracted(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("extracted")
    base, long, _ = models.family(root)
    extract_lora(base, long, root / "a", rank=4, layout="exact", verify=False)
    return root / "a"


def copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for name, data in models.contents(source).items():
        (target / name).write_bytes(data)
    return target


def test_a_plain_adapter_is_b_a_times_alpha_over_r(tmp_path):
    lora = Adapter.open(adapter(tmp_path / "a"))
    tensors = load_file(tmp_path / "a/adapter_model.safetensors")
    b, a = lora.factors(f"{Q}.weight")
    expected = 2 * (
        tensors[f"base_model.model.{Q}.lora_B.weight"]
        @ tensors[f"base_model.model.{Q}.lora_A.weight"]
    )
    torch.testing.assert_close(b @ a, expected)
    assert lora.shape(f"{Q}.weight") == (64, 64)
    assert lora.rank(f"{Q}.weight") == 4
    assert lora.record is lora.context is lora.lineage() is lora.roles() is None


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 3e38])
def test_sampled_weights_of_the_base_that_are_no_weights_are_refused(extracted, tmp_path, wrong):
    folder = copy(extracted, tmp_path / "a")
    samples = load_file(folder / LINEAGE)
    name = min(samples)
    samples[name] = torch.full_like(samples[name], wrong)
    save_file(samples, folder / LINEAGE)
    with pytest.raises(CheckpointError, match=rf"NaN, infinite or huge numbers for '{name}'"):
        Adapter.open(folder).lineage()


@pytest.mark.parametrize(
    ("b", "a", "alpha"),
    [(1e10, 1e10, 4), (1e30, 1e-20, 4), (1e-20, 1e30, 4), (1.0, 1.0, 1e30), (3e38, 3e38, 4)],
)
def test_factors_whose_product_or_squares_overflow_float32_are_refused(tmp_path, b, a, alpha):
    key = f"base_model.model.{Q}.lora_"
    tensors = {f"{key}A.weight": torch.full((4, 64), a), f"{key}B.weight": torch.full((64, 4), b)}
    lora = Adapter.open(adapter(tmp_path / "a", {"lora_alpha": alpha}, tensors))
    with pytest.raises(CheckpointError, match=rf"factors of '{Q}'.*have the norms .*make the"):
        lora.factors(f"{Q}.weight")


def test_factors_up_to_the_largest_norm_are_computed_with(tmp_path):
    key = f"base_model.model.{Q}.lora_"
    tensors = {
        f"{key}A.weight": torch.full((4, 64), LARGEST_NORM**0.5 / 17),
        f"{key}B.weight": torch.full((64, 4), LARGEST_NORM**0.5 / 17),
    }
    b, a = Adapter.open(adapter(tmp_path / "a", {"lora_alpha": 4}, tensors)).factors(f"{Q}.weight")
    assert (b @ a).square().sum().isfinite()


A_KEY, B_KEY = (f"base_model.model.{Q}.lora_{side}.weight" for side in "AB")


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"r": 8}, {}, "says 8; the config belongs to another adapter"),
        ({}, {B_KEY: torch.ones(64, 5)}, "rank 4 and 5"),
        ({}, {B_KEY: None}, "has only lora_A"),
        ({}, {A_KEY: None, B_KEY: None}, "holds no LoRA factors"),
        ({"r": 0}, {A_KEY: torch.ones(0, 64), B_KEY: torch.ones(64, 0)}, "rank 0"),
        ({}, {A_KEY: torch.ones(4, 3, 3, 3), B_KEY: torch.ones(8, 4, 1, 1)}, "changes matrices"),
        ({}, {A_KEY: torch.ones(4)}, "changes matrices"),
        ({}, {f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(64)}, "a part of LoRA"),
        ({"lora_alpha": "much"}, {}, "'lora_alpha' should be a valid number, not 'much'"),
        ({"lora_alpha": None}, {}, "'lora_alpha' should be a valid number, not None"),
        ({"lora_alpha": math.inf}, {}, "not valid JSON"),
        ({"rank_pattern": {"(": 4}}, {}, "rank_pattern holds .* no regular expression"),
        ({"alpha_pattern": ["q_proj"]}, {}, "'alpha_pattern' should be an object"),
    ],
)
def test_broken_adapters_are_named(config, tensors, message, tmp_path):
    with pytest.raises(RegraftError, match=message) as refused:
        Adapter.open(adapter(tmp_path / "a", config, tensors))
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_factors_with_nan_are_refused_when_used(bad, tmp_path):
    tensors = {A_KEY: torch.full((4, 64), bad)}
    lora = Adapter.open(adapter(tmp_path / "a", tensors=tensors))
    with pytest.raises(CheckpointError, match=f"NaN or infinite numbers in the factors of '{Q}'"):
        lora.factors(f"{Q}.weight")


def test_replacements_and_differences_with_nan_are_refused_when_used(extracted, tmp_path):
    key = "base_model.model.lm_head.weight"
    lora = Adapter.open(adapter(tmp_path / "a", tensors={key: torch.full((8, 8), math.nan)}))
    with pytest.raises(CheckpointError, match=r"NaN or infinite numbers for 'lm_head\.weight'"):
        lora.replacement("lm_head.weight")
    folder = copy(extracted, tmp_path / "b")
    save_file({"model.norm.weight": torch.full((64,), math.nan)},
              folder / "regraft-differences.safetensors")  # fmt: skip
    with pytest.raises(CheckpointError, match=r"NaN or infinite numbers for 'model\.norm"):
        Adapter.open(folder).difference("model.norm.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "is not an adapter: it has no"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (
            lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
            "has only pickled weights",
        ),
        (lambda f: (f / "adapter_config.json").write_text("{"), "is not valid JSON"),
        (lambda f: (f / "adapter_config.json").write_bytes(b"\xff\xfe"), "is not valid JSON"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "is not a JSON object"),
        (
            lambda f: _truncate(f / "adapter_model.safetensors"),
            "safetensors is truncated",
        ),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b""), "is empty"),
        (
            lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 99),
            "not a valid",
        ),
    ],
)
def test_broken_folders_are_named(change, message, tmp_path):
    folder = adapter(tmp_path / "a")
    change(folder)
    with pytest.raises(CheckpointError, match=message) as refused:
        Adapter.open(folder)
    assert "\n" not in str(refused.value)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_what_is_no_adapter_folder_is_said(tmp_path):
    model = models.save(tmp_path / "m", models.LLAMA, models.weights(models.LLAMA))
    with pytest.raises(CheckpointError, match="is a model: it has no adapter_config"):
        Adapter.open(model)
    with pytest.raises(CheckpointError, match="does not exist"):
        Adapter.open(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="is a file"):
        Adapter.open(model / "config.json")


def test_adapters_and_models_are_distinguished_also_on_the_hub(scripts, tmp_path):
    lora = adapter(tmp_path / "a")
    model = models.save(tmp_path / "m", models.LLAMA, models.weights(models.LLAMA))
    assert [is_adapter(source) for source in (lora, model, tmp_path / "none")] == [1, 0, 0]
    code = (
        "from regraft.adapters.reader import is_adapter\n"
        "print(*map(is_adapter, ('org/a', 'org/m', 'org/none')))"
    )
    with HubServer({"org/a": lora, "org/m": model}) as hub:
        done = scripts.run(code, env=hub.env(tmp_path / "cache"))
    assert done.stdout == "True False False\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.clear(),
        lambda record: record.update(kind="graft"),
        lambda record: record.pop("base"),
        lambda record: record.update(extended=None),
        lambda record: record["context"].pop("extended"),
        lambda record: record["context"].update(base={}),
        lambda record: record.pop("differences"),
    ],
)
def test_a_record_that_is_none_is_refused(change, extracted, tmp_path):
    folder = copy(extracted, tmp_path / "a")
    record = json.loads((folder / "regraft.json").read_text())
    change(record)
    (folder / "regraft.json").write_text(json.dumps(record))
    with pytest.raises(
        CheckpointError, match=r"regraft\.json(: '| lacks the key ')[\w.]+'"
    ) as refused:
        Adapter.open(folder)
    assert "\n" not in str(refused.value)


def test_a_newer_record_asks_for_a_newer_regraft(extracted, tmp_path):
    folder = copy(extracted, tmp_path / "a")
    record = json.loads((folder / "regraft.json").read_text())
    (folder / "regraft.json").write_text(json.dumps({**record, "schema_version": 99}))
    with pytest.raises(CheckpointError, match=r"schema version 99 .* update regraft"):
        Adapter.open(folder)


def test_our_own_folder_reads_back(extracted, tmp_path):
    lora = Adapter.open(extracted)
    assert len(lora.modules) == 14
    assert lora.record is not None
    assert lora.context is not None
    before, after = lora.context
    assert (before.theta, after.theta) == (10000.0, 160000.0)
    assert after.max_position_embeddings == 2048
    samples, role_of = lora.lineage(), lora.roles()
    assert samples is not None
    assert role_of is not None
    assert samples.keys() == role_of.keys()
    assert role_of[f"{Q}.weight"].kind == "projection"


def test_missing_differences_are_noticed(tmp_path):
    root = tmp_path
    base, long, _ = models.family(root, rank=2)
    state = models.load(long)
    state["model.norm.weight"] += 0.5
    models.save(long, {**models.LLAMA, **models.LONG}, state)
    extract_lora(base, long, root / "a", rank=2, layout="exact", verify=False)
    assert Adapter.open(root / "a").differences == ["model.norm.weight"]
    (root / "a/regraft-differences.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks regraft-differences"):
        Adapter.open(root / "a")


def test_targets_are_leaves_only_where_all_of_a_leaf_are_in():
    names = [f"model.layers.{i}.mlp.{leaf}" for i in range(12) for leaf in ("up", "down")]
    some = [AdapterModule(n, "linear", (8, 8), 2) for n in names if "up" in n or ".1." in n]
    config = peft_config(some, names, uniform_rank=2, base="b", revision=None)
    assert config["target_modules"] == ["model.layers.1.mlp.down", "up"]
    assert config["rank_pattern"] == {}
    mixed = [AdapterModule(n, "linear", (8, 8), 1 + ("layers.1." in n)) for n in names]
    config = peft_config(mixed, names, uniform_rank=None, base="b", revision=None)
    assert (config["r"], config["lora_alpha"]) == (2, 2)
    assert len(config["rank_pattern"]) == 22
    assert r"model\.layers\.11\.mlp\.up" in config["rank_pattern"]
    assert r"model\.layers\.1\.mlp\.up" not in config["rank_pattern"]
