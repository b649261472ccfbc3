"""Embedding and head that are one matrix: what each adapter changes, against PEFT itself."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.apply.check import check_graft
from regraft.adapters.reader import Adapter
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError, InputError
from regraft.merge.job import merge_models

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings"),
    pytest.mark.filterwarnings("ignore:.*carries no context"),
    pytest.mark.filterwarnings("ignore:.*does not say what its base"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied")
    return models.save(folder / "base", models.TIED, models.weights(models.TIED))


def trained(base: Path, folder: Path, **config: Any) -> tuple[Path, torch.Tensor]:
    """An adapter with random changes that PEFT saved, and PEFT's logits with it, unmerged."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, **config)
        )
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    with torch.no_grad():
        return folder, model.eval()(torch.arange(40)[None]).logits


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        return model(torch.arange(40)[None]).logits


REPLACED = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        (REPLACED, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}, False),
        ({**REPLACED, "ensure_weight_tying": True}, True),
        ({"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}, True),
    ],
    ids=["embedding", "head", "both apart", "both tied", "lora tied"],
)
@pytest.mark.parametrize("stored_twice", [False, True])
def test_the_graft_computes_what_peft_does_unmerged(
    config: dict[str, Any], tied: bool, stored_twice: bool, base: Path, tmp_path: Path
) -> None:
    folder, expected = trained(base, tmp_path / "a", **config)
    target = base
    if stored_twice:
        state = models.load(base)
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
        target = models.save(tmp_path / "twice", models.TIED, state)
    record = apply_lora(folder, target, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is tied
    assert (record.untied_head is None) == tied
    torch.testing.assert_close(logits(tmp_path / "out"), expected, atol=1e-4, rtol=1e-4)


def test_a_lora_on_a_tied_embedding_changes_both_and_says_so(base: Path, tmp_path: Path) -> None:
    folder, unmerged = trained(base, tmp_path / "a", target_modules=["embed_tokens"])
    with pytest.warns(UserWarning, match="which is its output head too"):
        apply_lora(folder, base, tmp_path / "out")
    assert (logits(tmp_path / "out") - unmerged).abs().max() > 1e-3


def test_the_untied_head_survives_shards_and_a_resumed_run(base: Path, tmp_path: Path) -> None:
    folder, expected = trained(base, tmp_path / "a", **REPLACED)
    sharded = models.save(tmp_path / "sharded", models.TIED, models.load(base), shards=3)
    apply_lora(folder, sharded, tmp_path / "out", verify=True)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert "lm_head.weight" in index["weight_map"]
    torch.testing.assert_close(logits(tmp_path / "out"), expected, atol=1e-4, rtol=1e-4)


def test_a_head_that_differs_from_its_tied_twin_in_the_adapter_is_refused(
    base: Path, tmp_path: Path
) -> None:
    config = {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}
    folder, _ = trained(base, tmp_path / "a", **config)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.lora_A.weight"] += 1
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="tied to the embedding there"):
        apply_lora(folder, base, tmp_path / "out")


def test_a_merge_refuses_what_would_untie(base: Path, tmp_path: Path) -> None:
    folder, _ = trained(base, tmp_path / "a", **REPLACED)
    recipe = tmp_path / "merge.yaml"
    recipe.write_text(
        f"merge_method: task_arithmetic\nbase_model: {base}\n"
        f"models: [{{model: {base}+{folder}, parameters: {{weight: 1}}}}]\n"
    )
    with pytest.raises(InputError, match="unties them"):
        merge_models(recipe, tmp_path / "out")


def test_a_check_changes_nothing_of_the_adapter(base: Path, tmp_path: Path) -> None:
    folder, _ = trained(base, tmp_path / "a", target_modules=["q_proj", "embed_tokens"])
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": True}))
    lora = Adapter.open(folder)
    before = dict(lora.modules), dict(lora.replaced), [lora.factors(n) for n in lora.modules]
    with Checkpoint.open(base) as target:
        first, second = (check_graft(lora, target) for _ in range(2))
    assert first == second
    assert (lora.modules, lora.replaced) == before[:2]
    for name, (b, a) in zip(lora.modules, before[2], strict=True):
        assert all(map(torch.equal, lora.factors(name), (b, a)))
