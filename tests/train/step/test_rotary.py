"""RoPE of a stage: the model rotates by it, and one that does not is refused."""

from __future__ import annotations

import pytest
import torch
from train_steps import cut, tiny_model

from regraft.errors import RegraftError
from regraft.parallel import attach
from regraft.rope import ContextSpec
from regraft.train.contexts import stage_context
from regraft.train.recipe.stages import Rope, Stage
from regraft.train.step.learner import Learner
from regraft.train.step.rotary import (
    Rotary,
    check_rotary,
    fix_rotary,
    frequencies_for,
    wavelengths,
)


def forward_of(model):
    return lambda ids, positions: model.model(**cut(ids, None, positions), use_cache=False)


@pytest.mark.parametrize("family", ["default", "yarn", "llama3", "linear", "longrope"])
def test_the_model_rotates_by_the_stages_table(family):
    model = tiny_model(torch.float32)
    attach(model)
    base = ContextSpec.from_config(model.config.to_dict())
    stage = Stage(length=4_194_304, theta=4e10, steps=1)
    spec = stage_context(base, base, Rope(family=family), stage, 8)
    rotary = fix_rotary(model, spec, stage.length)
    check_rotary(forward_of(model), model.model.layers[0], rotary, torch.device("cpu"))
    assert ContextSpec.from_config(model.config.to_dict()) == spec


def test_longrope_is_scored_with_the_factors_of_the_length():
    model = tiny_model(torch.float32)
    base = ContextSpec.from_config(model.config.to_dict())
    original = base.max_position_embeddings
    spec = stage_context(
        base, base, Rope(family="longrope"), Stage(length=4 * original, steps=1), 8
    )
    rotary = fix_rotary(model, spec, original)
    learner = Learner(model, 8)
    for length, factors in ((original, "short_factor"), (4 * original, "long_factor")):
        with frequencies_for(learner, length):
            seen = model.model.rotary_emb.frequencies
        expected = rotary.frequencies / torch.tensor(spec.rope_parameters[factors]).double()
        torch.testing.assert_close(seen, expected, rtol=1e-12, atol=0)
    assert model.model.rotary_emb is rotary


def test_a_theta_too_small_for_its_length_is_noted():
    spec = ContextSpec({"rope_type": "default", "rope_theta": 5e5}, 8192)
    lines = " ".join(wavelengths(Rotary(spec, 128, 8192)))
    assert "longest wavelength 2,559,1" in lines
    assert "Men" not in lines
    assert "below Men's bound 4,698,8" in " ".join(wavelengths(Rotary(spec, 128, 2**20 // 12)))


def test_a_model_that_keeps_its_old_frequencies_is_refused():
    model = tiny_model(torch.float32)
    attach(model)
    old = model.model.rotary_emb
    base = ContextSpec.from_config(model.config.to_dict())
    spec = stage_context(base, base, Rope(), Stage(length=2048, theta=1e6, steps=1), 8)
    rotary = fix_rotary(model, spec, 2048)
    model.model.rotary_emb = old
    with pytest.raises(RegraftError, match="does not rotate by theta 1000000"):
        check_rotary(forward_of(model), model.model.layers[0], rotary, torch.device("cpu"))
