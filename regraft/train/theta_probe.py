"""Which theta for a longer context, tried out: the same short training at each of a grid.

A law gives a starting point; published extensions departed from it by a third either way. Plain
loss is nearly blind to theta, and loss before training prefers one too small ("LongRoPE2", arXiv
2502.20082, scores only the tokens of answers for that reason). So each theta gets the recipe's
training for a few steps from the same seed, and is scored by the NLL of a needle's answer at the
target length, plus what the nearest positions lost against the best of the grid.
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

from regraft import progress
from regraft.errors import InputError
from regraft.rope import men_bound, scaling_law
from regraft.theta import trained_rope
from regraft.train.job import train_model
from regraft.train.recipe.recipe import Recipe
from regraft.units import format_tokens, parse_tokens

TIE = 0.02
"""Nats of score that a probe of this length cannot tell apart."""


def probe_theta(
    recipe: str | Path,
    trained: str | int,
    target: str | int,
    base: str | float | None = None,
    *,
    steps: int = 20,
    device: str = "auto",
) -> dict[str, Any]:
    """Train the recipe for `steps` steps at `target` tokens with every theta of the grid.

    trained, base: as for `regraft.theta.theta_for`. The grid: base unchanged, Men's bound, the
    scaling law, their geometric mean, four times the law, and YaRN at the base theta. Method, data,
    needle texts and the last stage's batch, rate and schedule are the recipe's; its stages and RoPE
    are not. Returns {"trials": [...], "chosen": name, "theta": float, "family": str, "margin":
    nats to the next best}, trials best first.
    Raises InputError for a recipe that does not say what a needle looks like.
    """
    read = Recipe.read(recipe)
    rope = trained_rope(trained, base)
    length, theta_before, target = rope.length, rope.theta, parse_tokens(target)
    if read.body.method == "recover":
        raise read.error(("method",), "a recovery keeps its theta; probe with full or lora.")
    if read.body.watch is None or read.body.watch.needle is None:
        raise read.error((), "a probe needs the recipe's needle: watch: {needle: {..}}.")
    if target <= length:
        raise InputError(
            f"{format_tokens(target)} is no longer context than {format_tokens(length)}."
        )
    trials: list[dict[str, Any]] = []
    for name, family, theta in grid(length, target, theta_before):
        progress.note(f"Trying {name}: {family}, theta {theta:.6g}")
        found = _try(read, family, theta, target, steps, device)
        trials.append({"name": name, "family": family, "theta": theta, **found})
    nearest = min(trial["near_nll"] for trial in trials)
    for trial in trials:
        trial["score"] = trial["needle_nll"] + trial["near_nll"] - nearest
    trials.sort(key=lambda trial: trial["score"])
    best = trials[0]
    return {
        "schema_version": 1,
        "kind": "theta probe",
        "trained": length,
        "target": target,
        "base": theta_before,
        "steps": steps,
        "trials": trials,
        "chosen": best["name"],
        "theta": best["theta"],
        "family": best["family"],
        "margin": trials[1]["score"] - best["score"],
    }


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


def table(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines a person wants to see: (label, text)."""
    lines = [
        (
            trial["name"],
            f"theta {trial['theta']:.6g}: needle {trial['zero_shot']:.3f} -> "
            f"{trial['needle_nll']:.3f} nats ({trial['found']:.0%} found), nearest text "
            f"{trial['near_nll']:.3f}, score {trial['score']:.3f}",
        )
        for trial in result["trials"]
    ]
    best = result["trials"][0]["score"]
    ties = [t["name"] for t in result["trials"][1:] if t["score"] < best + TIE]
    if ties:
        lines.append(("as good", f"within {TIE} nats: {', '.join(ties)}"))
    return [
        *lines,
        ("chosen", f"{result['chosen']}, by {result['margin']:.3f} nats after {result['steps']} "
                   "steps"),
    ]  # fmt: skip


def _try(
    recipe: Recipe, family: str, theta: float, target: int, steps: int, device: str
) -> dict[str, float]:
    value = copy.deepcopy(recipe.document.value)
    stage = {key: item for key, item in value["stages"][-1].items() if key in _KEPT}
    value["stages"] = [{**stage, "length": target, "theta": theta, "steps": steps}]
    value["rope"] = {"family": family}
    value["watch"] = {**value["watch"], "every": steps, "length": target, "stop": False}
    value["save_every"] = 10**9
    value.pop("track", None)
    with tempfile.TemporaryDirectory(prefix="regraft-probe-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(json.dumps(value), encoding="utf-8")
        record = train_model(path, Path(folder) / "out", device=device)
    first, last = record["watch"]["first"], record["watch"]["last"]
    return {
        "zero_shot": first["needle"]["nll"],
        "needle_nll": last["needle"]["nll"],
        "found": last["needle"]["found"],
        "near_nll": next(iter(last["nll"].values())),
        "far_nll": list(last["nll"].values())[-1],
        "loss": record["loss"]["last"],
    }


_KEPT = ("batch", "rate", "schedule", "mix")
