"""apply on real files: equal to PEFT, context included, nothing of the target lost."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract.extract import extract_lora
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError, InputError, LineageError
from regraft.records import to_json
from regraft.rope import ContextSpec

pytestmark = [
    pytest.mark.usefixtures("undrawn"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PEFT's own, and ours where none is tested
]
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> tuple[Path, Path, Path]:
    return models.family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def adapter(family, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("adapter") / "a"
    extract_lora(*family[:2], out, rank=4, dtype="float32", verify=False)
    return out


@pytest.fixture(scope="module")
def whole_adapter(tmp_path_factory) -> tuple[Path, Path, Path]:
    """(base, extended, adapter) in layout exact, every tensor changed."""
    root = tmp_path_factory.mktemp("whole")
    base = models.weights(models.LLAMA)
    extended = models.changed(base, rank=4, size=0.03, seed=1, names="")
    for name in extended:
        if "norm" in name:
            extended[name] = extended[name] + 0.1
    b = models.save(root / "base", models.LLAMA, base)
    e = models.save(root / "extended", {**models.LLAMA, **models.LONG}, extended)
    extract_lora(b, e, root / "a", rank=4, layout="exact", dtype="float32", verify=False)
    return b, e, root / "a"


def made_by_peft(folder: Path, base: Path, **config: Any) -> State:
    """A random adapter that PEFT itself wrote, and what PEFT merges it to."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, **config}))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save.default" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    wrapped.save_pretrained(folder)
    state = wrapped.merge_and_unload().state_dict()
    return {name: tensor.clone() for name, tensor in state.items()}


def same(found: State, wanted: State, tolerance: float = 1e-6) -> None:
    assert found.keys() <= wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], atol=tolerance, rtol=0, msg=name)


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


# Equal to PEFT.


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "up_proj"], "use_rslora": True},
        {
            "target_modules": "all-linear",
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 7},
            "alpha_pattern": {"k_proj": 1, r"layers\.0.*up_proj": 3},
        },
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]},
        {"target_modules": ["embed_tokens", "lm_head", "o_proj"]},
        {"target_modules": r".*layers\.1\.mlp.*_proj"},
        {"target_modules": ["q_proj"], "fan_in_fan_out": True},
        {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    ],
    ids=lambda config: ",".join(map(str, config.values()))[:40],
)
def test_adapters_made_by_peft_are_merged_as_peft_merges_them(config, family, tmp_path):
    wanted = made_by_peft(tmp_path / "a", family[0], **config)
    before = models.load(family[0])
    assert any(not torch.equal(before[name], wanted[name]) for name in before)
    apply_lora(tmp_path / "a", family[0], tmp_path / "out")
    found = models.load(tmp_path / "out")
    assert found.keys() == before.keys()
    same(found, wanted)


def test_a_switch_that_peft_ignores_on_linear_layers_is_ignored(family, tmp_path):
    """fan_in_fan_out is for GPT-2's Conv1D; on a square nn.Linear it must not transpose."""
    wanted = made_by_peft(tmp_path / "a", family[0], target_modules=["q_proj"])
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fan_in_fan_out": True}))
    apply_lora(tmp_path / "a", family[0], tmp_path / "out")
    same(models.load(tmp_path / "out"), wanted)


def test_conv1d_weights_stored_in_by_out_are_merged_as_peft_merges_them(tmp_path):
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 32, "n_layer": 2,
        "n_head": 2, "vocab_size": 50, "n_positions": 64, "max_position_embeddings": 64,
        "rope_theta": 1e4,
    }  # fmt: skip
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    state = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    base = models.save(tmp_path / "base", config, state)
    wanted = made_by_peft(
        tmp_path / "a", base, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True
    )
    apply_lora(tmp_path / "a", base, tmp_path / "out", context="checkpoint")
    same(models.load(tmp_path / "out"), wanted)


@pytest.mark.parametrize("stored", [False, True])
def test_a_tied_embedding_moves_its_head_too(stored, tmp_path):
    weights = models.weights(models.TIED)
    base = models.save(tmp_path / "base", models.TIED, weights)
    wanted = made_by_peft(tmp_path / "a", base, target_modules=["embed_tokens", "q_proj"])
    if stored:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        models.save(base, models.TIED, weights)
    apply_lora(tmp_path / "a", base, tmp_path / "out")
    found = models.load(tmp_path / "out")
    assert ("lm_head.weight" in found) == stored
    same(found, wanted)
    if stored:
        assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


def test_a_change_of_the_head_does_not_fit_a_tied_model(family, tmp_path):
    made_by_peft(tmp_path / "a", family[0], target_modules=["lm_head"])
    weights = models.weights(models.TIED)
    for extra in ({}, {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}):
        target = models.save(tmp_path / "tied", models.TIED, weights | extra)
        with pytest.raises(CheckpointError, match="it is tied to the embedding there"):
            apply_lora(tmp_path / "a", target, tmp_path / "out", force=True)


@pytest.mark.parametrize("scale", [0.5, -1.0, 0.0])
def test_scale_scales_the_change(scale, whole_adapter, tmp_path):
    base, extended, lora = whole_adapter
    apply_lora(lora, base, tmp_path / "out", scale=scale)
    before, after, found = models.load(base), models.load(extended), models.load(tmp_path / "out")
    same(found, {name: w + scale * (after[name] - w) for name, w in before.items()}, 2e-6)


def test_a_replacement_cannot_be_scaled(family, tmp_path):
    made_by_peft(tmp_path / "a", family[0], target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(InputError, match=r"--scale 0\.5 cannot scale"):
        apply_lora(tmp_path / "a", family[0], tmp_path / "out", scale=0.5)


def test_a_negative_scale_takes_a_change_back(whole_adapter, tmp_path):
    base, extended, lora = whole_adapter
    apply_lora(lora, extended, tmp_path / "out", scale=-1.0, context="theta=10000,length=256")
    same(models.load(tmp_path / "out"), models.load(base), 2e-6)
    assert config_of(tmp_path / "out")["max_position_embeddings"] == 256


# Numbers and dtypes.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_sum_is_rounded_once_and_the_loss_told(dtype, family, adapter, tmp_path):
    target = models.save(tmp_path / "t", models.LLAMA, models.load(family[2]), dtype=dtype)
    record = apply_lora(adapter, target, tmp_path / "out")
    before, found = models.load(target), models.load(tmp_path / "out")
    base, extended = models.load(family[0]), models.load(family[1])
    lost = total = 0.0
    for name, w in before.items():
        assert found[name].dtype == dtype
        if "proj" not in name:
            assert torch.equal(found[name], w)
            continue
        change = extended[name].double() - base[name].double()
        exact = w.double() + change
        assert (
            float((found[name].double() - exact).abs().max())
            <= 1.01 * float((exact.to(dtype).double() - exact).abs().max()) + 1e-7
        )
        squared = float(change.square().sum())
        loss = float((found[name].double() - exact).square().sum())
        fact = record.tensors[name]
        assert fact.change_norm == pytest.approx(math.sqrt(squared), rel=1e-4)
        if dtype.itemsize == 2:
            assert fact.lost_to_storage == pytest.approx(math.sqrt(loss / squared), rel=1e-3)
        lost, total = lost + loss, total + squared
    assert record.totals.tensors == 14
    if dtype.itemsize == 2:
        assert record.totals.lost_to_storage == pytest.approx(math.sqrt(lost / total), rel=1e-3)
    else:
        assert record.totals.lost_to_storage == 0
    assert to_json(record) == json.loads((tmp_path / "out/regraft.json").read_text())


def test_a_matrix_longer_than_a_block_is_the_same(family, tmp_path, monkeypatch):
    from regraft.adapters.apply import stream as module

    wanted = made_by_peft(tmp_path / "a", family[0], target_modules="all-linear")
    monkeypatch.setattr(module, "_BLOCK", 64 * 7)
    apply_lora(tmp_path / "a", family[0], tmp_path / "out")
    same(models.load(tmp_path / "out"), wanted)


# Context.


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


# Lineage.


def test_strangers_are_refused_with_figures_unless_forced(family, adapter, tmp_path):
    stranger = models.save(tmp_path / "s", models.LLAMA, models.weights(models.LLAMA, seed=9))
    with pytest.raises(LineageError, match=r"no relative of .*projection 14\d\.\d% away"):
        apply_lora(adapter, stranger, tmp_path / "out")
    assert apply_lora(adapter, stranger, tmp_path / "out", force=True).lineage.verdict == (
        "stranger"
    )


def test_a_target_that_has_the_change_is_refused(family, adapter, tmp_path):
    with pytest.raises(LineageError, match=r"already has (99|100|101)% of the change"):
        apply_lora(adapter, family[1], tmp_path / "x")
    apply_lora(adapter, family[2], tmp_path / "once")
    with pytest.raises(LineageError, match=r"already has 100% of the change"):
        apply_lora(adapter, tmp_path / "once", tmp_path / "twice")
    record = apply_lora(adapter, tmp_path / "once", tmp_path / "twice", force=True)
    assert record.already_present == pytest.approx(1, abs=0.02)
    fresh = apply_lora(adapter, family[2], tmp_path / "x", dry_run=True)
    assert fresh.already_present == pytest.approx(0, abs=0.05)


def test_a_target_trained_alike_in_the_old_context_is_a_warning(family, adapter, tmp_path):
    base, extended = models.load(family[0]), models.load(family[1])
    alike = {name: w + 2 * (extended[name] - w) for name, w in base.items()}
    target = models.save(tmp_path / "alike", models.LLAMA, alike)
    with pytest.warns(UserWarning, match="already has 200% of the change"):
        record = apply_lora(adapter, target, tmp_path / "out")
    assert record.already_present == pytest.approx(2, abs=0.02)


def test_the_base_that_a_plain_adapter_names_is_measured(family, tmp_path):
    made_by_peft(tmp_path / "a", family[0], target_modules=["q_proj"])
    record = apply_lora(tmp_path / "a", family[2], tmp_path / "out")
    assert record.lineage.verdict == "relative"
    assert record.base.name == str(family[0])
    with pytest.raises(LineageError, match="already has"):
        apply_lora(tmp_path / "a", tmp_path / "out", tmp_path / "twice")


def test_a_base_that_is_not_at_hand_is_a_warning(family, tmp_path):
    made_by_peft(tmp_path / "a", family[0], target_modules=["q_proj"])
    path = tmp_path / "a/adapter_config.json"
    for named in ("org/elsewhere", str(tmp_path), None):
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": named})
        )
        with pytest.warns(UserWarning, match="cannot be checked"):
            record = apply_lora(tmp_path / "a", family[2], tmp_path / "out", overwrite=True)
        assert record.lineage is None


def test_names_without_the_models_prefix_are_relatives_all_the_same(family, adapter, tmp_path):
    bare = {name.removeprefix("model."): w for name, w in models.load(family[2]).items()}
    target = models.save(tmp_path / "bare", models.LLAMA, bare)
    record = apply_lora(adapter, target, tmp_path / "out")
    assert record.lineage.verdict == "relative"
    assert record.already_present == pytest.approx(0, abs=0.05)
    apply_lora(adapter, family[2], tmp_path / "usual")
    found, usual = models.load(tmp_path / "out"), models.load(tmp_path / "usual")
    assert found.keys() == bare.keys()
    assert all(torch.equal(found[n.removeprefix("model.")], w) for n, w in usual.items())


# What is the target's stays the target's.


def test_added_tokens_and_files_of_the_target_are_kept(whole_adapter, tmp_path):
    base, extended, lora = whole_adapter
    state = models.load(base)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.full((5, 64), 0.25)])
    target = models.save(tmp_path / "t", {**models.LLAMA, "vocab_size": 85}, state)
    files = {
        "tokenizer.json": b'{"v": 1}\r\n',
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": "{{ 'ü' }}".encode(),
        "LICENSE": b"mine",
        "sub/notes.txt": b"pass",
    }
    left = {
        "README.md": b"old",
        "sub/code.py": b"pass",
        "adapter_config.json": b"{}",
        "regraft.json": b"{}",
    }
    for name, data in (files | left).items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(data)
    apply_lora(lora, target, tmp_path / "out")
    found, wanted = models.load(tmp_path / "out"), models.load(extended)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        torch.testing.assert_close(found[name][:80], wanted[name], atol=2e-6, rtol=0)
        assert torch.equal(found[name][80:], torch.full((5, 64), 0.25))
    out = models.contents(tmp_path / "out")
    assert files.items() <= out.items()
    assert out["generation_config.json"] == (target / "generation_config.json").read_bytes()
    assert out["README.md"] != b"old"
    assert "adapter_config.json" not in out
    assert json.loads(out["regraft.json"])["kind"] == "graft"


def test_inputs_are_not_touched(family, adapter, tmp_path):
    before = models.contents(family[2]), models.contents(adapter)
    apply_lora(adapter, family[2], tmp_path / "out", verify=True)
    assert (models.contents(family[2]), models.contents(adapter)) == before


def test_shards_are_the_targets_or_of_the_size_asked_for(adapter, tmp_path, family):
    state = models.load(family[2])
    target = models.save(tmp_path / "t", models.LLAMA, state, shards=3)
    apply_lora(adapter, target, tmp_path / "like")
    apply_lora(adapter, target, tmp_path / "cut", max_shard_size="60kB", verify=True)
    apply_lora(adapter, target, tmp_path / "one", max_shard_size="1GB")
    like, cut, one = (models.load(tmp_path / name) for name in ("like", "cut", "one"))
    assert sorted(p.name for p in (tmp_path / "like").glob("*.safetensors")) == sorted(
        p.name for p in target.glob("*.safetensors")
    )
    assert max(p.stat().st_size for p in (tmp_path / "cut").glob("*.safetensors")) < 64_000
    assert [p.name for p in (tmp_path / "one").glob("*.safetensors")] == ["model.safetensors"]
    for name, tensor in one.items():
        assert torch.equal(tensor, like[name])
        assert torch.equal(tensor, cut[name])


def test_the_output_is_a_checkpoint_of_its_own(family, adapter, tmp_path):
    apply_lora(adapter, family[2], tmp_path / "out")
    with Checkpoint.open(tmp_path / "out") as out, Checkpoint.open(family[2]) as target:
        assert list(out.tensors) == list(target.tensors)
        assert out.metadata == target.metadata


# Files, kills, disks.


def test_the_same_input_gives_the_same_bytes(family, adapter, tmp_path, monkeypatch):
    monkeypatch.undo()  # with the figure
    for out in ("one", "two"):
        apply_lora(adapter, family[2], tmp_path / out)
    one = models.contents(tmp_path / "one")
    assert one == models.contents(tmp_path / "two")
    assert {"graft.png", "README.md", "regraft.json", "config.json"} <= one.keys()


def test_a_dry_run_says_no_where_the_real_run_would(family, adapter, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        apply_lora(adapter, family[2], tmp_path / "taken", dry_run=True)
    with pytest.raises(InputError, match="is not one that regraft wrote"):
        apply_lora(adapter, family[2], tmp_path / "taken", dry_run=True, overwrite=True)
    models.earlier_output(tmp_path / "taken")
    with pytest.raises(InputError, match="overlaps the input"):
        apply_lora(adapter, family[2], Path(family[2]) / "out", dry_run=True)
    assert apply_lora(adapter, family[2], tmp_path / "taken", dry_run=True, overwrite=True).plan


def test_a_dry_run_writes_nothing(family, adapter, tmp_path):
    plan = apply_lora(adapter, family[2], tmp_path / "out", dry_run=True).plan
    assert plan["changed"] == 14
    assert list(tmp_path.iterdir()) == []


def test_resume_after_kills_gives_the_same_bytes(family, adapter, tmp_path, children):
    target = models.save(
        tmp_path / "t", models.LLAMA, models.load(family[2]), dtype=torch.bfloat16, shards=2
    )
    line = ["apply", adapter, target, "-q"]
    whole = children.run(*line, "-o", tmp_path / "whole")
    assert whole["code"] == 0, whole["err"]
    again = [*line, "-o", tmp_path / "again", "--resume"]
    for share in (0.01, 0.5, 0.3):
        died = children.run(*again, die=1 + int(share * whole["calls"]))
        assert died["code"] == -9
        assert not (tmp_path / "again").exists()
    assert children.run(*again)["code"] == 0
    assert models.contents(tmp_path / "again") == models.contents(tmp_path / "whole")


def test_resume_does_not_repeat_what_is_done(family, adapter, tmp_path, monkeypatch):
    from regraft.adapters.apply import stream as module

    done: list[str] = []
    changed = module._changed

    def counted(lora: Any, target: Any, output: Any, *arguments: Any) -> Any:
        if len(done) == 9:
            done.append("interrupted")
            raise KeyboardInterrupt
        done.append(output.name)
        return changed(lora, target, output, *arguments)

    monkeypatch.setattr(module, "_changed", counted)
    with pytest.raises(KeyboardInterrupt):
        apply_lora(adapter, family[2], tmp_path / "out")
    record = apply_lora(adapter, family[2], tmp_path / "out", resume=True)
    done.remove("interrupted")
    assert len(done) == len(set(done)) == 14
    monkeypatch.undo()
    assert record.totals == apply_lora(adapter, family[2], tmp_path / "whole").totals


def test_a_resumed_run_must_be_the_same_job(family, adapter, tmp_path, children, undrawn):
    line = ["apply", adapter, family[2], "-q", "-o", tmp_path / "out"]
    assert children.run(*line, die=60)["code"] == -9
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"An unfinished run .*--overwrite starts again\.$"):
        apply_lora(adapter, family[2], out)
    with pytest.raises(InputError, match=r"The unfinished run .* with --overwrite\.$"):
        apply_lora(adapter, family[2], out, scale=0.5, resume=True)
    assert apply_lora(adapter, family[2], out, scale=0.5, overwrite=True).totals is not None


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_full_disk_is_one_sentence_and_resumable(share, family, adapter, tmp_path, children):
    line = ["apply", adapter, family[2], "-q"]
    whole = children.run(*line, "-o", tmp_path / "whole")
    full = children.run(*line, "-o", tmp_path / "again", fail=int(share * whole["calls"]))
    assert full["code"] == 1
    assert re.fullmatch(r"regraft: .*disk is full; make room\.\n", full["err"])
    assert children.run(*line, "-o", tmp_path / "again", "--resume")["code"] == 0
    assert models.contents(tmp_path / "again") == models.contents(tmp_path / "whole")


# Bad input.


Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_in_a_tensor_that_changes_is_named(value, family, adapter, tmp_path):
    state = models.load(family[2])
    state[Q][3, 3] = value
    target = models.save(tmp_path / "bad", models.LLAMA, state)
    with pytest.raises(CheckpointError, match=f"'{Q}' of .*bad holds NaN") as refused:
        apply_lora(adapter, target, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_nan_in_a_tensor_that_is_only_copied_is_named_and_nothing_stays(family, adapter, tmp_path):
    name = "model.embed_tokens.weight"
    state = models.load(family[2])
    before = state[name][3, 3].clone()
    state[name][3, 3] = math.nan
    target = models.save(tmp_path / "bad", models.LLAMA, state)
    with pytest.raises(CheckpointError, match=f"'{name}' of .*bad holds NaN"):
        apply_lora(adapter, target, tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))  # no staging that would bar the corrected run
    state[name][3, 3] = before
    models.save(target, models.LLAMA, state)
    apply_lora(adapter, target, tmp_path / "out")


def test_nan_that_no_sample_saw_is_named(tmp_path):
    config = {**models.LLAMA, "intermediate_size": 512}
    base, long, derivative = models.family(tmp_path, config=config)
    extract_lora(base, long, tmp_path / "a", rank=4, verify=False)
    state = models.load(derivative)
    name = "model.layers.1.mlp.up_proj.weight"
    from regraft.checkpoint.read.sample import sample_blocks

    at = sample_blocks(state[name].numel())[3][1]
    state[name].view(-1)[at] = math.nan
    models.save(derivative, config, state)
    with pytest.raises(CheckpointError, match=f"'{name}' of .* holds NaN"):
        apply_lora(tmp_path / "a", derivative, tmp_path / "out")


def test_a_change_that_the_dtype_cannot_hold_is_refused(family, adapter, tmp_path):
    target = models.save(tmp_path / "t", models.LLAMA, models.load(family[2]), dtype=torch.float16)
    with pytest.raises(CheckpointError, match=r"does not fit torch\.float16"):
        apply_lora(adapter, target, tmp_path / "out", scale=1e9, force=True)


@pytest.mark.parametrize(
    ("config", "state", "said"),
    [
        ({"num_hidden_layers": 1}, None, "has no tensor 'model.layers.1"),
        ({"intermediate_size": 80}, None, r"is \[.*\] and .* changes one of \[.*\]"),
        ({}, lambda s: s.update({Q: s[Q].to(torch.int8)}), "not quantised"),
    ],
)
def test_another_architecture_is_refused_by_name(config, state, said, adapter, tmp_path):
    config = {**models.LLAMA, **config}
    weights = models.weights(config)
    if state:
        state(weights)
    target = models.save(tmp_path / "t", config, {})
    save_file({k: v.contiguous() for k, v in weights.items()}, target / "model.safetensors")
    with pytest.raises(CheckpointError, match=said) as refused:
        apply_lora(adapter, target, tmp_path / "out", force=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"scale": math.nan}, "is not a number that can scale"),
        ({"scale": math.inf}, "is not a number that can scale"),
        ({"max_shard_size": "big"}, "'big' is not a size"),
        ({"device": "nowhere"}, "--device 'nowhere' is not"),
    ],
)
def test_arguments_are_checked_before_any_work(arguments, said, family, adapter, tmp_path):
    with pytest.raises(InputError, match=re.escape(said)):
        apply_lora(adapter, family[2], tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_adapter_and_checkpoint_swapped_are_told_apart(family, adapter, tmp_path):
    with pytest.raises(CheckpointError, match="is a model"):
        apply_lora(family[2], adapter, tmp_path / "out")
    with pytest.raises(CheckpointError):
        apply_lora(adapter, adapter, tmp_path / "out")


def test_an_output_inside_an_input_is_refused(family, adapter, tmp_path):
    for out in (family[2], family[2] / "x", adapter, adapter / "x"):
        with pytest.raises(InputError, match="overlaps the input"):
            apply_lora(adapter, family[2], out, overwrite=True)


def test_the_record_names_every_file_that_decided(whole_adapter, tmp_path):
    import hashlib

    base, _, lora = whole_adapter
    record = apply_lora(lora, base, tmp_path / "out")
    assert record.adapter.sha256.keys() == {
        "adapter_config.json", "adapter_model.safetensors", "regraft-differences.safetensors",
    }  # fmt: skip
    for name, digest in record.adapter.sha256.items():
        assert hashlib.sha256((lora / name).read_bytes()).hexdigest() == digest
    kinds = {fact.kind for fact in record.tensors.values()}
    assert kinds == {"factors", "difference"}
    assert len(load_file(lora / "regraft-differences.safetensors")) == 7
