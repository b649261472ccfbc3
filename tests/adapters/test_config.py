"""adapter_config.json: wrong types are refused, contradictions are put into words."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from peft_folders import Q, adapter

from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.apply.check import check_graft
from regraft.adapters.config import AdapterConfig, is_target
from regraft.adapters.inspect.inspect import inspect_model
from regraft.adapters.reader import Adapter
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError, InputError

A_KEY, B_KEY = (f"base_model.model.{Q}.lora_{side}.weight" for side in "AB")


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": "false"},
        {"use_rslora": 0},
        {"fan_in_fan_out": "yes"},
        {"lora_alpha": True},
        {"lora_alpha": "8"},
        {"r": 4.5},
        {"r": True},
        {"rank_pattern": {"q_proj": "4"}},
        {"alpha_pattern": {"q_proj": False}},
        {"alpha_pattern": [["q_proj", 8]]},
        {"target_modules": {"q_proj": 1}},
        {"target_modules": [1]},
        {"layers_to_transform": "0"},
        {"modules_to_save": "lm_head"},
        {"peft_type": ["LORA"]},
        {"base_model_name_or_path": 3},
        {"init_lora_weights": 1},
        {"ensure_weight_tying": "no"},
    ],
)
def test_a_value_of_another_type_is_refused_by_name(config: dict[str, Any], tmp_path: Path) -> None:
    (key,) = config
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json: '{key}.*' should be") as no:
        Adapter.open(adapter(tmp_path / "a", config))
    assert "\n" not in str(no.value)


def test_switches_given_as_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="uses use_dora='false'"):
        Adapter.open(adapter(tmp_path / "a", {"use_dora": "false"}))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.bool])
def test_factors_of_whole_numbers_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", tensors={B_KEY: torch.ones(64, 4).to(dtype)})
    with pytest.raises(CheckpointError, match="no floating-point type"):
        Adapter.open(folder)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ({"target_modules": ["v_proj"]}, "target_modules"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, "target_modules, layers_to"),
        ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, "exclude_modules"),
        ({"target_modules": r".*layers\.1\..*q_proj"}, "target_modules"),
    ],
)
def test_factors_that_the_config_leaves_out_are_said(
    config: dict[str, Any], settings: str, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "a", config)
    base = models.save(tmp_path / "m", models.LLAMA, models.weights(models.LLAMA))
    with pytest.warns(UserWarning, match=rf"factors of 1 modules, '{Q}'.*{settings}.*leave out"):
        apply_lora(folder, base, tmp_path / "out", dry_run=True)
    assert any(settings in text for text in inspect_model(str(folder)).warnings)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["q_proj", "k_proj"], "target_modules name 'k_proj', for which it holds no factors"),
        (["k_proj", "a", "b", "c", "q_proj"], "name 'k_proj', 'a', 'b' and 1 more, for which"),
    ],
)
def test_targets_without_factors_are_said(targets: list[str], words: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", {"target_modules": targets, "layers_to_transform": [0]})
    assert any(words in text for text in inspect_model(str(folder)).warnings)
    base = models.save(tmp_path / "m", models.LLAMA, models.weights(models.LLAMA))
    with pytest.warns(UserWarning, match=re.escape(words)):
        apply_lora(folder, base, tmp_path / "out", dry_run=True)


def test_a_layer_without_the_factors_that_other_layers_have_is_said(tmp_path: Path) -> None:
    base = models.save(tmp_path / "m", models.LLAMA, models.weights(models.LLAMA))
    other = Q.replace(".0.", ".1.")
    words = rf"no factors of 1 modules, '{re.escape(other)}' first"
    with pytest.warns(UserWarning, match=words):
        apply_lora(adapter(tmp_path / "a"), base, tmp_path / "out", dry_run=True)
    both = {
        f"base_model.model.{name}.lora_{side}.weight": torch.ones(
            (4, 64) if side == "A" else (64, 4)
        )
        for name in (Q, other)
        for side in "AB"
    }
    for folder in (
        adapter(tmp_path / "one", {"layers_to_transform": [0]}),
        adapter(tmp_path / "named", {"target_modules": [Q]}),
        adapter(tmp_path / "both", tensors=both),
    ):
        with Checkpoint.open(base) as target:
            verdict = check_graft(Adapter.open(folder), target)
        assert not [text for text in verdict.warnings if "factors" in text]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target_modules": None},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.q_proj"},
        {"target_modules": [Q]},
        {"layers_to_transform": 0},
        {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
        {"layers_to_transform": []},
    ],
)
def test_a_config_that_names_what_is_stored_is_silent(
    config: dict[str, Any], tmp_path: Path
) -> None:
    assert Adapter.open(adapter(tmp_path / "a", config)).warnings == []


def test_targets_are_pefts() -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    names = [
        f"model.layers.{layer}.{block}"
        for layer in (0, 1, 11)
        for block in ("self_attn.q_proj", "mlp.up_proj", "mlp.experts.1.up_proj")
    ]
    settings = itertools.product(
        [["q_proj"], ["mlp.up_proj", "layers.1.self_attn.q_proj"], r".*1\..*_proj", [names[0]]],
        [None, ["up_proj"], r".*\.11\..*"],
        [None, 1, [0, 11], []],
        [None, "layers", ["h", "layers"], []],
    )
    for targets, excluded, layers, pattern in settings:
        if isinstance(targets, str) and (layers is not None or pattern is not None):
            continue  # PEFT refuses the pair
        if pattern and layers is None:
            continue  # and this one
        own = AdapterConfig(
            target_modules=targets, exclude_modules=excluded, layers_to_transform=layers,
            layers_pattern=pattern,
        )  # fmt: skip
        theirs = LoraConfig(
            target_modules=targets, exclude_modules=excluded, layers_to_transform=layers,
            layers_pattern=pattern,
        )  # fmt: skip
        for name in names:
            expected = bool(check_target_module_exists(theirs, name))
            assert is_target(own, name) == expected, (own, name)


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 2, "q_proj": 16}}, 0.5),
        ({"alpha_pattern": {r"layers\.1\..*q_proj": 2, "_proj": 16}}, 2.0),
        ({"alpha_pattern": {r".*\.q_proj": 16}}, 4.0),
        ({"r": 99, "rank_pattern": {"q_proj": 4}}, 2.0),
        ({"r": 99, "rank_pattern": {"^model.layers.0.self_attn.q_proj": 4}}, 2.0),
        ({"rank_pattern": None, "alpha_pattern": None}, 2.0),
        ({"lora_alpha": 0}, 0.0),
    ],
)
def test_scaling_follows_pefts_patterns(config, scaling, tmp_path):
    lora = Adapter.open(adapter(tmp_path / "a", config))
    assert lora.modules[f"{Q}.weight"].scaling == pytest.approx(scaling)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "is a LOHA adapter"),
        ({"peft_type": None}, "is a nameless adapter"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["experts.w"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"use_qalora": True}, "use_qalora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights='pissa_niter_16'"),
        ({"init_lora_weights": "OLoRA"}, "init_lora_weights='OLoRA'"),
        ({"init_lora_weights": "corda"}, "init_lora_weights='corda'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq'"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights='lora_ga'"),
    ],
)
def test_what_is_more_than_a_plain_change_is_refused(config, message, tmp_path):
    with pytest.raises(InputError, match=message) as refused:
        Adapter.open(adapter(tmp_path / "a", config))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_ways_to_begin_that_leave_the_base_alone_are_read(start, tmp_path):
    assert Adapter.open(adapter(tmp_path / "a", {"init_lora_weights": start})).modules
