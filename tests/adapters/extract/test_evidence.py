"""The numbers in the record are those of the stored adapter."""

from __future__ import annotations

import math

import models
import pytest
import torch
from extracted import changes, everything_changed, record_of, relative, save_pair
from safetensors.torch import load_file

from regraft.adapters.extract import evidence
from regraft.adapters.extract.extract import extract_lora
from regraft.errors import CheckpointError, InputError
from regraft.records import to_json


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
