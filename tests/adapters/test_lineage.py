"""Relatives, strangers, and how much of a change a model has already."""

from __future__ import annotations

import math

import models
import pytest
import torch

from regraft.adapters import lineage
from regraft.checkpoint.hf.roles import tensor_roles
from regraft.checkpoint.read.sample import sample_blocks
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    config = {**models.LLAMA, "intermediate_size": 256}  # tensors larger than their sample
    return models.family(tmp_path_factory.mktemp("family"), config=config)


def sketch(folder):
    with Checkpoint.open(folder) as checkpoint:
        return lineage.sketch(checkpoint), tensor_roles(checkpoint.config, checkpoint.tensors)


def relate(one, other):
    first, role_of = sketch(one)
    return lineage.relate(first, sketch(other)[0], role_of)


def test_a_sketch_is_1024_weights_of_each_tensor_at_known_places(family):
    samples, _ = sketch(family[0])
    state = models.load(family[0])
    assert samples.keys() == state.keys()
    for name, values in samples.items():
        flat = state[name].flatten()
        assert values.numel() == min(1024, flat.numel())
        at = torch.cat([torch.arange(*block) for block in sample_blocks(flat.numel())])
        assert torch.equal(values, flat[at])


def test_a_model_is_the_same_as_itself(family):
    relation = relate(family[0], family[0])
    assert relation.verdict == "same"
    assert all((d.distance, d.cosine) == (0, pytest.approx(1)) for d in relation.roles.values())


@pytest.mark.parametrize(("which", "size"), [(1, 0.03), (2, 0.02)])
def test_a_relative_is_as_far_as_it_was_moved(which, size, family):
    relation = relate(family[0], family[which])
    assert relation.verdict == "relative"
    assert list(relation.roles) == ["projection", "embedding", "head", "norm"]
    assert relation.roles["projection"].distance == pytest.approx(size, rel=0.1)
    assert relation.roles["projection"].cosine == pytest.approx(1 - size**2 / 2, abs=1e-3)
    assert relation.roles["norm"].distance == 0
    assert f"projection {relation.roles['projection'].distance:.1%} away" in lineage.describe(
        relation
    )


def test_another_seed_is_a_stranger(family, tmp_path):
    config = {**models.LLAMA, "intermediate_size": 256}
    other = models.save(tmp_path / "other", config, models.weights(config, seed=7))
    relation = relate(family[0], other)
    assert relation.verdict == "stranger"
    assert abs(relation.roles["projection"].cosine) < 0.05
    assert relation.roles["projection"].distance == pytest.approx(math.sqrt(2), rel=0.05)


def test_dtype_does_not_make_a_stranger(family, tmp_path):
    rounded = models.save(
        tmp_path / "r", {**models.LLAMA, "intermediate_size": 256}, models.load(family[0]),
        dtype=torch.bfloat16,
    )  # fmt: skip
    relation = relate(family[0], rounded)
    assert relation.verdict == "relative"
    assert 0 < relation.roles["projection"].distance < 0.003


def test_added_tokens_and_missing_tensors_are_counted(family):
    first, role_of = sketch(family[0])
    second = dict(first)
    second["model.embed_tokens.weight"] = torch.zeros(7)
    del second["lm_head.weight"]
    relation = lineage.relate(first, second, role_of)
    assert (relation.verdict, relation.missing) == ("relative", 2)
    assert "embedding" not in relation.roles
    assert lineage.relate(first, {}, role_of).verdict == "stranger"


def test_figures_are_finite_where_a_role_was_zero():
    zero, one = {"b": torch.zeros(4)}, {"b": torch.ones(4)}
    for first, second, distance in ((zero, one, 1.0), (one, zero, 1.0), (zero, zero, 0.0)):
        result = lineage.relate(first, second, {}).roles["other"]
        assert result.distance == distance
        assert math.isfinite(result.cosine)


def test_a_sample_with_nan_names_its_tensor(tmp_path):
    state = models.weights(models.LLAMA)
    state["model.norm.weight"][3] = math.nan
    folder = models.save(tmp_path / "bad", models.LLAMA, state)
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' of .*bad holds NaN"):
        sketch(folder)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0, -1.0, 2.0])
def test_the_share_of_a_change_that_is_there_already(share, family):
    before, derivative = models.load(family[0]), models.load(family[2])
    generator = torch.Generator().manual_seed(8)
    changes, moved = [], dict(derivative)
    for name, w in before.items():
        if "proj" in name:
            b = 0.01 * torch.randn(w.shape[0], 3, generator=generator)
            a = torch.randn(3, w.shape[1], generator=generator)
            changes.append((name, b, a))
            moved[name] = derivative[name] + share * (b @ a)

    def sampled(state):
        return {
            name: w.flatten()[torch.cat([torch.arange(*r) for r in sample_blocks(w.numel())])]
            for name, w in state.items()
        }

    assert lineage.present(sampled(before), sampled(moved), changes) == pytest.approx(
        share, abs=0.05
    )


def test_a_change_of_other_tensors_is_not_present():
    assert lineage.present({}, {}, [("w", torch.ones(4, 1), torch.ones(1, 4))]) == 0.0
    grown = {"w": torch.ones(20)}
    assert lineage.present(grown, grown, [("w", torch.ones(4, 1), torch.ones(1, 4))]) == 0.0
