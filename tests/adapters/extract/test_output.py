"""The files of an adapter: same bytes, resumed runs, full disks, replaced outputs."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import models
import pytest
import torch
from extracted import planned_and_written
from safetensors.torch import load_file

from regraft.adapters.extract import factorize
from regraft.adapters.extract.extract import extract_lora
from regraft.adapters.extract.factorize import Factorizer
from regraft.checkpoint.write.staging import Staging
from regraft.errors import InputError, OutputError


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


def test_a_dry_run_writes_nothing(family, tmp_path):
    plan = extract_lora(*family[:2], tmp_path / "a" / "b", rank=4, dry_run=True).plan
    assert (plan["modules"], plan["rank"]) == (14, "4")
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


def test_decompositions_have_ended_when_the_journal_fails(family, tmp_path, monkeypatch):
    ended = []

    def watched(items, work, *_):
        try:
            yield from map(work, items)
        finally:
            ended.append(True)

    def full(self: Staging, unit: str, **values: Any) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(factorize, "in_order", watched)
    monkeypatch.setattr(Staging, "record", full)
    with pytest.raises(OutputError, match="the disk is full") as error:
        extract_lora(*family[:2], tmp_path / "a", rank=4, verify=False)
    assert error.tb is not None  # or the frames were gone, and the iterator with them
    assert ended


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
    expected = models.contents(tmp_path / "whole")
    old = models.contents(models.earlier_output(tmp_path / "old", config_json="keep"))
    for back in range(8):
        out = models.earlier_output(tmp_path / f"o{back}", config_json="keep")
        died = children.run(*line, "-o", out, "--rank", 4, "--overwrite", die=calls - back)
        assert died["code"] == -9
        left = [models.contents(path) for path in tmp_path.glob(f"*o{back}*") if path.is_dir()]
        assert old in left or any(expected.items() <= result.items() for result in left)
        if back % 3 == 0:
            done = children.run(*line, "-o", out, "--rank", 4, "--overwrite", "--resume")
            assert done["code"] == 0, done["err"]
            assert models.contents(out) == expected


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


def test_too_little_room_is_found_before_the_first_module(family, tmp_path, monkeypatch):
    def never(self: Factorizer) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=4, f_frsize=1000))
    monkeypatch.setattr(Factorizer, "run", never)
    with pytest.raises(OutputError, match=r"needs [\d.]+ kB, and 4 kB are free"):
        extract_lora(*family[:2], tmp_path / "out", rank=4, verify=False)
    for rule in ({"rank": "auto"}, {"energy": 0.9}, {"layout": "compact", "budget": "20kB"}):
        with (
            pytest.warns(UserWarning, match=r"may need up to [\d.]+ kB, and 4 kB .*; make room"),
            pytest.raises(AssertionError, match="the work has begun"),
        ):
            extract_lora(*family[:2], tmp_path / "out", verify=False, **rule)


@pytest.mark.parametrize(
    "rule",
    [{"rank": 4}, {"rank": "auto"}, {"energy": 0.9}, {"layout": "compact", "budget": "20kB"}],
    ids=["rank", "auto", "energy", "budget"],
)
def test_the_room_that_is_checked_holds_spool_and_weights(family, tmp_path, monkeypatch, rule):
    planned, written = planned_and_written(monkeypatch, *family[:2], tmp_path / "out", **rule)
    assert planned.keys() == written.keys()
    assert len(planned) == 15
    assert all(size <= planned[name] for name, size in written.items())
    assert (written == planned) == (rule == {"rank": 4})


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
