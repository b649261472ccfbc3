"""The context of what apply writes."""

from __future__ import annotations

import models
import pytest
import torch
from applied import config_of, made_by_peft

from regraft.adapters.apply.apply import apply_lora, summary
from regraft.errors import InputError, LineageError
from regraft.rope import ContextSpec

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PEFT's own, and ours where none is tested
]


def test_the_config_says_the_context_in_both_spellings_and_transformers_reads_it(
    family, adapter, tmp_path
):
    from transformers import AutoModelForCausalLM

    record = apply_lora(adapter, family[2], tmp_path / "out")
    assert record.context.policy == "adapter"
    config = config_of(tmp_path / "out")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 160000.0
    assert config["max_position_embeddings"] == 2048
    untouched = {k: v for k, v in models.LLAMA.items() if k not in models.LONG}
    assert untouched.items() <= config.items()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.rope_parameters["rope_theta"] == 160000.0
    assert loaded.config.max_position_embeddings == 2048
    with torch.no_grad():
        assert torch.isfinite(loaded(torch.arange(70)[None]).logits).all()


@pytest.mark.parametrize(
    ("context", "theta", "length"),
    [
        (None, 160000.0, 2048),
        ("adapter", 160000.0, 2048),
        ("checkpoint", 10000.0, 256),
        ("theta=5e5,length=1k", 500000.0, 1024),
        ("length=512", 160000.0, 512),
        ("theta=5e5", 500000.0, 2048),
    ],
)
def test_context_is_whose_the_user_says(context, theta, length, family, adapter, tmp_path):
    spec = apply_lora(adapter, family[2], tmp_path / "out", context=context, dry_run=True).context
    assert spec.output.rope_parameters["rope_theta"] == theta
    assert spec.output.max_position_embeddings == length


def test_the_screen_says_where_the_context_comes_from(family, adapter, tmp_path):
    for context, words in ((None, "from the adapter"), ("length=4k", "as given")):
        record = apply_lora(adapter, family[2], tmp_path / words[:2], context=context)
        assert f"({words})" in dict(summary(record))["context"]


def test_unequal_rope_without_a_policy_is_refused(family, adapter, tmp_path):
    other = models.save(
        tmp_path / "t", {**models.LLAMA, "rope_theta": 77777.0}, models.load(family[2])
    )
    with pytest.raises(LineageError, match="say which to use") as refused:
        apply_lora(adapter, other, tmp_path / "out")
    assert "theta 77777" in str(refused.value)
    apply_lora(adapter, other, tmp_path / "out", context="adapter")
    assert config_of(tmp_path / "out")["rope_theta"] == 160000.0


@pytest.mark.parametrize("context", ["nobody", "theta=x", "theta=0", "size=3", "theta=1e4,theta=2"])
def test_impossible_contexts_are_refused(context, family, adapter, tmp_path):
    with pytest.raises(InputError) as refused:
        apply_lora(adapter, family[2], tmp_path / "out", context=context)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_plain_adapter_keeps_the_targets_context_and_says_so(family, tmp_path):
    made_by_peft(tmp_path / "a", family[0], target_modules=["q_proj"])
    with pytest.warns(UserWarning, match="carries no context"):
        record = apply_lora(tmp_path / "a", family[0], tmp_path / "out")
    assert record.context.policy == "checkpoint"
    with pytest.raises(InputError, match="carries no context"):
        apply_lora(tmp_path / "a", family[0], tmp_path / "x", context="adapter")


def test_a_context_that_the_target_cannot_hold_is_refused_before_the_work(
    family, adapter, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        ContextSpec, "write_into", lambda *_: (_ for _ in ()).throw(InputError("cannot"))
    )
    with pytest.raises(InputError, match="cannot"):
        apply_lora(adapter, family[2], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
