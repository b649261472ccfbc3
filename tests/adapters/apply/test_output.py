"""The files of a graft: the target's own, same bytes, resumed runs, full disks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import load_file

from regraft.adapters.apply.apply import apply_lora
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PEFT's own, and ours where none is tested
]


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
    result, expected = models.load(tmp_path / "out"), models.load(extended)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        torch.testing.assert_close(result[name][:80], expected[name], atol=2e-6, rtol=0)
        assert torch.equal(result[name][80:], torch.full((5, 64), 0.25))
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
    line = ["apply", adapter, target, "-q", "--guard", family[0]]
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


def test_a_resumed_run_must_be_the_same_job(family, adapter, tmp_path, children):
    line = ["apply", adapter, family[2], "-q", "-o", tmp_path / "out"]
    assert children.run(*line, die=60)["code"] == -9
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"An unfinished run .*--overwrite starts again\.$"):
        apply_lora(adapter, family[2], out)
    with pytest.raises(InputError, match=r"The unfinished run .* with --overwrite\.$"):
        apply_lora(adapter, family[2], out, scale=0.5, resume=True)
    with pytest.raises(InputError, match=r"The unfinished run .* with --overwrite\.$"):
        apply_lora(adapter, family[2], out, guard=family[0], resume=True)
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
