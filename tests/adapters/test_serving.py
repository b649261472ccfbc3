"""What vLLM and llama.cpp load: one list of limits, checked on the files of real adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from peft_folders import adapter

from regraft.adapters.extract.extract import extract_lora
from regraft.adapters.reader import Adapter
from regraft.adapters.serving import (
    VLLM_LIMITS,
    VLLM_RANKS,
    AdapterFacts,
    llamacpp_flags,
    readers,
    vllm_flags,
    vllm_problems,
)
from regraft.adapters.writer import _check_portable
from regraft.rope import ContextSpec

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # fmt: skip
K = "base_model.model.model.layers.0.self_attn.k_proj"
TWO = {f"{K}.lora_A.weight": torch.ones(2, 64), f"{K}.lora_B.weight": torch.ones(32, 2)}


@pytest.mark.parametrize(
    ("config", "tensors", "phrase"),
    [
        ({}, {}, None),
        (
            {"modules_to_save": ["norm"]},
            {"base_model.model.model.norm.weight": torch.ones(64)},
            "whole tensors",
        ),
        (
            {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 4},
             "target_modules": ["q_proj", "k_proj"]},
            TWO, "patterns",
        ),
        ({"rank_pattern": {"q_proj": 4}}, {}, None),  # a pattern that changes nothing
        ({"use_rslora": True}, {}, None),  # vLLM computes its scale
        ({"r": 600}, {
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(600, 64),
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.ones(64, 600),
        }, "rank 600 is above its 512"),
    ],
)  # fmt: skip
def test_each_limit_is_found_in_the_files(
    config: dict[str, Any], tensors: dict[str, Any], phrase: str | None, tmp_path: Path
) -> None:
    facts = Adapter.open(adapter(tmp_path / "a", config, tensors)).facts
    problems = vllm_problems(facts)
    if phrase is None:
        assert problems == []
        assert readers(facts)["vLLM"] == "with --max-lora-rank 8"
    else:
        assert [phrase in problem for problem in problems] == [True]
        assert readers(facts)["vLLM"] == f"no: {problems[0]}"


def test_every_limit_has_an_adapter_that_breaks_it() -> None:
    broken = AdapterFacts(rank=600, uniform=False, whole_tensors=1)
    assert len(vllm_problems(broken)) == len(VLLM_LIMITS)


@pytest.mark.parametrize("layout", ["portable", "compact", "exact"])
def test_portable_adapters_pass_and_others_say_why_not(layout: str, tmp_path: Path) -> None:
    base, extended, _ = models.family(tmp_path, rank=None)
    extract_lora(base, extended, tmp_path / "a", energy=0.6, layout=layout, verify=False)
    problems = vllm_problems(Adapter.open(tmp_path / "a").facts)
    assert bool(problems) is (layout != "portable")


def test_the_writer_checks_what_it_wrote(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", {"target_modules": ["q_proj", "k_proj"], "r": 4,
                                      "rank_pattern": {"k_proj": 2}}, TWO)  # fmt: skip
    with pytest.raises(ValueError, match="vLLM would not load"):
        _check_portable(folder, "base")


@pytest.mark.parametrize("rank", [1, 4, 16, 33, 512])
def test_the_flags_take_the_rank_from_the_list(rank: int) -> None:
    spec = ContextSpec({"rope_type": "default", "rope_theta": 160000.0}, 2048)
    line = vllm_flags("base", spec, rank)
    allowed = int(line.split("--max-lora-rank ")[1].split()[0])
    assert allowed in VLLM_RANKS
    assert allowed >= rank
    overrides = json.loads(line.split("--hf-overrides ")[1].strip("'"))
    assert overrides["max_position_embeddings"] == 2048
    assert overrides["rope_parameters"]["rope_theta"] == 160000.0


def test_llama_cpps_flags_override_the_trained_length() -> None:
    yarn = ContextSpec(
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
         "original_max_position_embeddings": 256}, 1024,
    )  # fmt: skip
    assert llamacpp_flags(yarn) == (
        "llama-server -m BASE.gguf --lora ADAPTER.gguf -c 1024 "
        "--override-kv llama.context_length=int:1024 --rope-freq-base 10000 "
        "--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 256"
    )
    dynamic = ContextSpec({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, 256)
    assert llamacpp_flags(dynamic).startswith("(llama.cpp has no flags for dynamic RoPE")


@pytest.mark.parametrize(
    ("facts", "answer"),
    [
        (AdapterFacts(rank=4, uniform=False, patterns=1), "by regraft export"),
        (AdapterFacts(rank=4, uniform=True, differences=3), "no: it loads no dense differences"),
        (AdapterFacts(rank=4, uniform=True, whole_tensors=1), "no: it loads no whole tensors"),
    ],
)
def test_llama_cpp_loads_what_export_writes(facts: AdapterFacts, answer: str) -> None:
    assert readers(facts)["llama.cpp"].startswith(answer)
