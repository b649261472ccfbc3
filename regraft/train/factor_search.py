"""The factors of longrope with which an untrained model finds the most needles at a longer context.

The score of a list of factors is the NLL of the needles' answers, without any training: a forward
pass over the recipe's needles for each (`regraft.rope.longrope` has the search).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from regraft import progress
from regraft.checkpoint.read.source import Checkpoint
from regraft.rope import extend_context
from regraft.rope.longrope import search_factors
from regraft.train.contexts import rotated_pairs
from regraft.train.recipe.recipe import Recipe
from regraft.train.recipe_mesh import make_mesh
from regraft.train.setup import model_source, prepare_run
from regraft.train.step.fsdp import shard
from regraft.train.step.learner import load
from regraft.train.step.rotary import fix_rotary, head_size, set_rotary
from regraft.train.validation import Validation, scores


@torch.no_grad()
def best_factors(recipe: Recipe, trained: int, *, budget: int, device: str) -> list[float]:
    """The best of `budget` lists of factors, for the length of the recipe's last stage.

    recipe: with the texts of a needle. trained: the context before extension, in tokens. Raises
    InputError as a training by the recipe.
    """
    body = recipe.body
    assert body.watch is not None
    stage = body.stages[-1]
    mesh = make_mesh(body, device)
    with tempfile.TemporaryDirectory(prefix="regraft-toy-", ignore_cleanup_errors=True) as toys:
        source = model_source(recipe, Path(toys))
        with Checkpoint.open(source) as base:
            run = prepare_run(recipe, mesh, source, base)
            learner = load(body, base, mesh)
        shard(learner, body, mesh)
        learner.eval()
        length = recipe.watch_length(stage)
        needles = Validation(run.corpus, body.watch, length, run.tokenizer).needles
        before = run.before
        pairs = rotated_pairs(before, head_size(learner.model.config))
        theta = stage.theta or before.theta
        verified: list[float] = []
        with progress.bar("factors of longrope", total=budget, unit="lists") as bar:

            def score(factors: list[float]) -> float:
                spec = extend_context(
                    before, theta=theta, length=stage.length, rope_type="longrope",
                    original=trained, long_factor=factors,
                )  # fmt: skip
                if verified:
                    fix_rotary(learner.model, spec, stage.length)
                else:  # that the model rotates by what it is given
                    set_rotary(learner, mesh, spec, stage.length)
                    verified[:] = factors
                nll, _, valid = scores(learner, needles, mesh)
                bar.advance(1)
                return float(nll.sum() / valid.sum())

            factors, _ = search_factors(
                score, pairs, theta, trained, stage.length, budget=budget, seed=body.seed
            )
    return [round(factor, 4) for factor in factors]
