"""extract-lora --calibrate: the inputs it measures, both errors, resumption."""

from __future__ import annotations

import json
import math
from itertools import chain
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from calibration import HOW, copy_of
from extracted import changes, planned_and_written, record_of

from regraft.adapters.extract import moments
from regraft.adapters.extract.extract import extract_lora
from regraft.adapters.extract.factorize import Factorizer
from regraft.data.toy_language import WORDS, write_tokenizer
from regraft.errors import InputError
from regraft.lowrank.weighted import DAMPING, WeightedNorm
from regraft.records import to_json


def hooked_moments(folder: Path, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Module -> mean of x x' of its inputs, by hooks on transformers' whole model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(
                lambda _, args, name=name: inputs.setdefault(name, []).append(args[0].double())
            )
    with torch.no_grad():
        for row in rows:
            model(input_ids=row[None])
    stacked = {name: torch.cat(x, 1)[0] for name, x in inputs.items()}
    return {name: x.T @ x / len(x) for name, x in stacked.items()}


def test_moments_are_those_of_the_extended_models_inputs(pair, tmp_path, monkeypatch):
    seen: dict[str, WeightedNorm] = {}
    calibrations: list[moments.Calibration] = []
    decompose = Factorizer._decompose

    def noted(run: Any, module: Any, delta: Any, at_most: int, norm: Any) -> Any:
        seen[module.name] = norm
        calibrations.append(run._calibration)
        return decompose(run, module, delta, at_most, norm)

    monkeypatch.setattr(Factorizer, "_decompose", noted)
    base, extended, text = pair
    extract_lora(base, extended, tmp_path / "a", rank=4, verify=False, calibrate=text, **HOW)
    rows = calibrations[0].rows
    assert rows.shape == (16, 64)
    expected = hooked_moments(extended, rows)
    assert seen.keys() == expected.keys()
    for name, moment in expected.items():
        n = len(moment)
        own = (moment * (n / moment.trace()) + DAMPING * torch.eye(n)) / (1 + DAMPING)
        root = seen[name].root
        torch.testing.assert_close(root @ root.T, own, atol=1e-5, rtol=1e-4, msg=name)
    for layer in ("model.layers.0.", "model.layers.1."):
        shared = [
            [f"{layer}self_attn.{leaf}_proj" for leaf in "qkv"],
            [f"{layer}mlp.{leaf}_proj" for leaf in ("gate", "up")],
        ]
        for names in shared:
            assert len({id(seen[name]) for name in names}) == 1
        heads = [*(names[0] for names in shared), f"{layer}self_attn.o_proj",
                 f"{layer}mlp.down_proj"]  # fmt: skip
        assert len({id(seen[name]) for name in heads}) == 4


def output_errors(pair: Any, adapter: Path, norms: dict[str, WeightedNorm]) -> tuple[float, float]:
    """(weighted, plain) relative error over all modules of the adapter as stored."""
    base, extended = models.load(pair[0]), models.load(pair[1])
    missed, whole = [0.0, 0.0], [0.0, 0.0]
    for name, change in changes(adapter).items():
        module = name.removesuffix(".weight")
        delta = extended[f"{module}.weight"].double() - base[f"{module}.weight"].double()
        for i, root in enumerate((norms[module].root, torch.eye(delta.shape[1]).double())):
            missed[i] += float(((delta - change) @ root).square().sum())
            whole[i] += float((delta @ root).square().sum())
    return math.sqrt(missed[0] / whole[0]), math.sqrt(missed[1] / whole[1])


def test_record_states_both_errors_and_the_weighted_one_is_below_plain_extraction(pair, tmp_path):
    base, extended, text = pair
    record = extract_lora(base, extended, tmp_path / "a", rank=8, calibrate=text, **HOW)
    extract_lora(base, extended, tmp_path / "plain", rank=8, verify=False)
    assert to_json(record) == record_of(tmp_path / "a")
    card = (tmp_path / "a/README.md").read_text()
    down = [m for name, m in record.modules.items() if name.endswith("down_proj")]
    assert "| error on inputs | best |" in card
    assert f"| {sum(m.weighted_error for m in down) / 2:.4f} |" in card
    calibration = record.extraction.calibration
    assert (calibration.text, calibration.length, calibration.tokens) == (str(text), 64, 1024)
    assert len(calibration.digest) == 32
    rows = moments_rows(pair)
    norms = {
        name: WeightedNorm.from_moment(c) for name, c in hooked_moments(extended, rows).items()
    }
    weighted, plain = output_errors(pair, tmp_path / "a", norms)
    assert record.totals.weighted_error == pytest.approx(weighted, rel=1e-3)
    assert record.totals.error == pytest.approx(plain, rel=1e-3)
    other_weighted, other_plain = output_errors(pair, tmp_path / "plain", norms)
    assert weighted < 0.9 * other_weighted
    assert plain > other_plain
    assert record.totals.error_bound_over_optimum < 1.001
    for module in record.modules.values():
        assert module.truncation.least_possible_error <= module.weighted_error
    assert record.totals.by_rank[-1].weighted_error == pytest.approx(
        record.totals.weighted_error, rel=1e-3
    )


def moments_rows(pair: Any) -> torch.Tensor:
    from regraft.checkpoint.hf.tokenizer import open_tokenizer
    from regraft.data.calibration import calibration_rows

    return calibration_rows(
        str(pair[2]), open_tokenizer(str(pair[1])), len(WORDS), length=64, tokens=1024, seed=0
    ).ids


@pytest.mark.parametrize(
    "rule", [{"rank": "auto"}, {"energy": 0.5}, {"budget": "20kB", "layout": "compact"}],
    ids=["auto", "energy", "budget"],
)  # fmt: skip
def test_rules_count_in_the_norm_of_the_inputs(rule, pair, tmp_path):
    base, extended, text = pair
    how = {"verify": False, **rule}
    ours = extract_lora(base, extended, tmp_path / "a", calibrate=text, **HOW, **how).totals
    plain = extract_lora(base, extended, tmp_path / "b", **how).totals
    if "energy" in rule:
        assert ours.signal_captured >= 0.5 - 1e-9
        assert ours.rank_max < plain.rank_max
    elif "rank" in rule:
        assert ours.weighted_error < 0.5
    else:
        assert ours.bytes <= 20_000
        assert ours.signal_captured > plain.signal_captured


def test_tensors_outside_the_layers_are_extracted_as_without_calibration(pair, tmp_path):
    base, extended, text = pair
    state = models.load(extended)
    state["lm_head.weight"] += 0.01 * torch.randn(
        state["lm_head.weight"].shape, generator=torch.Generator().manual_seed(0)
    )
    changed = models.save(tmp_path / "e", json.loads((extended / "config.json").read_text()), state)
    write_tokenizer(changed)
    how = {"rank": 4, "modules": "lm_head,q_proj", "verify": False, "dtype": "float32"}
    ours = extract_lora(base, changed, tmp_path / "a", calibrate=text, **HOW, **how)
    extract_lora(base, changed, tmp_path / "b", **how)
    assert ours.modules["lm_head"].weighted_norm is None
    assert ours.modules["model.layers.0.self_attn.q_proj"].weighted_norm is not None
    a, b = changes(tmp_path / "a"), changes(tmp_path / "b")
    assert torch.equal(a["lm_head.weight"], b["lm_head.weight"])


def test_resume_after_kills_gives_the_same_bytes(pair, tmp_path, children):
    base, extended, text = pair
    line = ["extract-lora", base, extended, "--rank", 4, "--calibrate", text,
            "--calibrate-length", 64, "--calibrate-tokens", 512, "--no-verify", "-q"]  # fmt: skip
    whole = children.run(*line, "-o", tmp_path / "whole")
    assert whole["code"] == 0, whole["err"]
    again = [*line, "-o", tmp_path / "again", "--resume"]
    for share in (0.5, 0.15):
        assert children.run(*again, die=1 + int(share * whole["calls"]))["code"] == -9
    assert children.run(*again)["code"] == 0
    assert models.contents(tmp_path / "again") == models.contents(tmp_path / "whole")


def test_the_room_that_is_checked_is_that_of_the_weighted_factors(pair, tmp_path, monkeypatch):
    base, extended, text = pair
    planned, written = planned_and_written(
        monkeypatch, base, extended, tmp_path / "out", rank=3, calibrate=text, **HOW
    )  # fmt: skip
    assert written == planned


def test_another_text_is_another_job(pair, tmp_path, monkeypatch):
    base, extended, text = pair
    own = tmp_path / "text.txt"
    own.write_text(text.read_text())
    run = Factorizer.run

    def stopped(factorizer: Any) -> None:
        run(factorizer)
        raise KeyboardInterrupt

    how = {"rank": 2, "verify": False, "calibrate": own, **HOW}
    monkeypatch.setattr(Factorizer, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        extract_lora(base, extended, tmp_path / "a", **how)
    own.write_text(text.read_text()[1000:])
    with pytest.raises(InputError, match="had other inputs or arguments"):
        extract_lora(base, extended, tmp_path / "a", resume=True, **how)


def test_a_dry_run_counts_the_memory_of_hidden_states_and_moments(pair, tmp_path):
    base, extended, text = pair
    how = {"rank": 2, "dry_run": True}
    plain = extract_lora(base, extended, tmp_path / "a", **how).plan["peak_memory_bytes"]
    ours = extract_lora(base, extended, tmp_path / "a", calibrate=text, **HOW, **how).plan
    needed = 4 * 1024 * 64 + 2 * 8 * 96**2  # float32 hidden states, two moments of down_proj
    assert plain + needed <= ours["peak_memory_bytes"] <= plain + 4 * needed
    assert not (tmp_path / "a").exists()


def test_inputs_that_are_always_zero_are_extracted_plainly(pair, tmp_path):
    """A second moment of rank 0: what the damping cannot weigh counts as in the plain norm."""

    def silent(state: Any, config: Any) -> None:
        state["model.layers.0.mlp.up_proj.weight"].zero_()

    quiet = copy_of(pair, tmp_path / "quiet", silent)
    write_tokenizer(quiet)
    record = extract_lora(
        pair[0], quiet, tmp_path / "a", rank=4, force=True, verify=False, calibrate=pair[2], **HOW
    )
    down = record.modules["model.layers.0.mlp.down_proj"]
    assert down.weighted_norm == pytest.approx(down.delta_norm)
    assert down.weighted_error == pytest.approx(down.error, rel=1e-6)
    assert all(math.isfinite(m.weighted_error) for m in chain(record.modules.values()))
