"""The best RoPE for a longer context, by the same short training with every theta of a grid.

A law gives a starting point; published extensions differ from it by up to a third. Plain loss
hardly depends on theta, and the loss before training is lowest for a theta that is too small (for
that reason "LongRoPE2", arXiv 2502.20082, scores only the tokens of answers). So each theta gets a
few steps of the recipe's training from the same seed. Its score is the NLL of a needle's answer at
the target length, plus the NLL of the nearest positions above the grid's best.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from regraft import progress
from regraft.document import RecipeValues
from regraft.errors import InputError
from regraft.records import SCHEMA_VERSION
from regraft.rope import men_bound, scaling_law
from regraft.rope.longrope import long_factors
from regraft.theta import trained_rope
from regraft.train.factor_search import best_factors
from regraft.train.job import train_model
from regraft.train.recipe.recipe import Recipe
from regraft.units import format_tokens, parse_tokens

TIE = 0.02
"""Scores that differ by less than this, in nats, count as equal."""

_STAGE_KEYS = ("batch", "rate", "schedule", "mix")  # a trial has those of the last stage


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A short training with one theta; NLL in nats a token. zero_shot: the needle's NLL before
    training; accuracy: share of needles answered. nearest_nll, farthest_nll: of the nearest and the
    farthest positions. score: needle_nll plus the difference of nearest_nll to the lowest of the
    grid. long_factor: of longrope."""

    name: str
    family: str
    theta: float
    zero_shot: float
    needle_nll: float
    accuracy: float
    nearest_nll: float
    farthest_nll: float
    loss: float
    score: float = math.inf
    long_factor: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class ThetaProbe:
    """All trials, the best first. trained, target: lengths in tokens. chosen, theta, family,
    long_factor: of the best trial; margin: score of the second minus its score."""

    trained: int
    target: int
    base: float
    steps: int
    trials: list[Trial]
    chosen: str
    theta: float
    family: str
    margin: float
    long_factor: list[float] | None = None
    kind: Literal["theta probe"] = "theta probe"
    schema_version: int = SCHEMA_VERSION


def probe_theta(
    recipe: str | Path,
    trained: str | int,
    target: str | int,
    base: str | float | None = None,
    *,
    steps: int = 20,
    search: int = 0,
    device: str = "auto",
) -> ThetaProbe:
    """Train the recipe for `steps` steps at `target` tokens with every theta of the grid.

    The grid: base unchanged, Men's bound, the scaling law, their geometric mean, four times the
    law, and YaRN at the base theta; with `search` longrope at the base theta, with factors by
    formula and with the best of so many lists of factors.

    recipe: a training recipe in YAML, whose method, data, needle texts and the last stage's batch,
    rate and schedule are used; its stages and RoPE are not. trained, target, base: as for
    `regraft.theta_for`. Raises InputError for a recipe that does not say what a needle looks like.
    """
    parsed = Recipe.read(recipe)
    rope = trained_rope(trained, base)
    length, theta_before, target = rope.length, rope.theta, parse_tokens(target)
    if parsed.body.method == "recover":
        raise parsed.error(("method",), "a recovery keeps its theta; probe with full or lora.")
    if parsed.body.watch is None or parsed.body.watch.needle is None:
        raise parsed.error((), "a probe needs the recipe's needle: watch: {needle: {..}}.")
    if target <= length:
        raise InputError(
            f"{format_tokens(target)} is no longer context than {format_tokens(length)}."
        )
    trials = []
    for name, family, theta in grid(length, target, theta_before):
        progress.note(f"Trying {name}: {family}, theta {theta:.6g}")
        trials.append(_run_trial(parsed, name, {"family": family}, theta, target, steps, device))
    if search:
        progress.note(f"Searching factors of longrope at theta {theta_before:.6g}")
        longrope: RecipeValues = {"family": "longrope", "original": length}
        with _written(parsed, longrope, theta_before, target, steps) as path:
            factors = best_factors(Recipe.read(path), length, budget=search, device=device)
        pairs = len(factors)
        for name, values in (
            ("longrope, searched", factors),
            ("longrope, formula", long_factors(pairs, theta_before, length, target)),
        ):
            longrope["long_factor"] = values
            trial = _run_trial(parsed, name, longrope, theta_before, target, steps, device)
            trials.append(replace(trial, long_factor=values))
    nearest = min(trial.nearest_nll for trial in trials)
    scored = [
        replace(trial, score=trial.needle_nll + trial.nearest_nll - nearest) for trial in trials
    ]
    scored.sort(key=lambda trial: trial.score)
    best = scored[0]
    return ThetaProbe(
        trained=length, target=target, base=theta_before, steps=steps, trials=scored,
        chosen=best.name, theta=best.theta, family=best.family,
        margin=scored[1].score - best.score, long_factor=best.long_factor,
    )  # fmt: skip


def grid(trained: int, target: int, base: float) -> list[tuple[str, str, float]]:
    """(name, RoPE family, theta) of every trial."""
    law, bound = scaling_law(base, trained, target), men_bound(target)
    return [
        ("unchanged", "keep", base),
        ("bound", "keep", float(round(bound))),
        ("between", "keep", float(round((law * bound) ** 0.5))),
        ("scaling law", "keep", float(round(law))),
        ("four times", "keep", float(round(4 * law))),
        ("YaRN", "yarn", base),
    ]


def table(result: ThetaProbe) -> list[tuple[str, str]]:
    """The lines on the screen: (label, text)."""
    lines = [
        (
            trial.name,
            f"theta {trial.theta:.6g}: needle {trial.zero_shot:.3f} -> {trial.needle_nll:.3f} nats "
            f"({trial.accuracy:.0%} found), nearest text {trial.nearest_nll:.3f}, "
            f"score {trial.score:.3f}",
        )
        for trial in result.trials
    ]
    best = result.trials[0].score
    ties = [trial.name for trial in result.trials[1:] if trial.score < best + TIE]
    if ties:
        lines.append(("as good", f"within {TIE} nats: {', '.join(ties)}"))
    factors = [
        (f"factors of {trial.name}", ", ".join(f"{factor:g}" for factor in trial.long_factor))
        for trial in result.trials
        if trial.long_factor is not None
    ]
    return [
        *lines,
        *factors,
        ("chosen", f"{result.chosen}, by {result.margin:.3f} nats after {result.steps} steps"),
    ]


@contextmanager
def _written(
    recipe: Recipe, rope: RecipeValues, theta: float, target: int, steps: int
) -> Iterator[Path]:
    """The recipe of a trial, in a temporary folder."""
    value = copy.deepcopy(recipe.document.value)
    stage = {key: item for key, item in value["stages"][-1].items() if key in _STAGE_KEYS}
    value["stages"] = [{**stage, "length": target, "theta": theta, "steps": steps}]
    value["rope"] = rope
    value["watch"] = {**value["watch"], "every": steps, "length": target, "stop": False}
    value["save_every"] = 10**9
    value.pop("track", None)
    with tempfile.TemporaryDirectory(prefix="regraft-probe-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(json.dumps(value), encoding="utf-8")
        yield path


def _run_trial(
    recipe: Recipe,
    name: str,
    rope: RecipeValues,
    theta: float,
    target: int,
    steps: int,
    device: str,
) -> Trial:
    with _written(recipe, rope, theta, target, steps) as path:
        record = train_model(path, path.parent / "out", device=device)
    assert record.watch is not None
    assert record.loss is not None
    first, last = record.watch.first, record.watch.last
    assert first.needle is not None
    assert last.needle is not None
    by_position = list(last.nll.values())
    return Trial(
        name=name, family=str(rope["family"]), theta=theta, zero_shot=first.needle.nll,
        needle_nll=last.needle.nll, accuracy=last.needle.accuracy, nearest_nll=by_position[0],
        farthest_nll=by_position[-1], loss=record.loss.last,
    )  # fmt: skip
