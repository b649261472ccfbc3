"""The training recipes of the demo's three models.

A base learns retrieval in rows of 64 words; an extended copy learns it in 1024; a
derivative of the base learns a skill of its own, `shout`. The recipes stay in the demo's folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from regraft.write import write_text

_DENSE = {"prose": 0.45, "questions": 0.65}


@dataclass(frozen=True)
class Plan:
    """Every hyperparameter of the demo. The defaults are the demo; tests take fewer steps."""

    trained: int = 64
    target: int = 1024
    theta: float = 70.0
    """What 500000 is to Llama 3: ln(length / 2 pi) / ln(theta) = .547 for both."""
    base_steps: tuple[int, int] = (190, 160)
    """Until retrieval is discovered, with little prose; then to settle, with more."""
    base_rows: int = 32
    base_rate: float = 5e-3
    extension: tuple[tuple[int, int, int], ...] = ((32, 512, 8), (32, 1024, 4))
    """Steps, length, rows."""
    extension_rate: float = 1e-3
    derivative_steps: int = 340
    derivative_rate: float = 1.2e-3
    ranks: tuple[int, ...] = (4, 16)
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    questions: int = 256
    """Asked at each length."""
    prose_rows: int = 32


def base_recipe(plan: Plan, seed: int) -> dict[str, Any]:
    """The base, trained from nothing with Muon: prose and retrieval in rows of `plan.trained`
    words."""
    first, second = plan.base_steps
    return _recipe(
        seed,
        model={"toy": {"length": plan.trained, "theta": plan.theta}},
        optimizer={"name": "muon"},
        memory={"checkpoint": False, "rows": plan.base_rows},
        stages=[
            _stage(
                plan.trained, first, plan.base_rows, plan.base_rate, "easy",
                schedule={"kind": "constant", "warmup": 20},
            ),
            _stage(
                plan.trained, second, plan.base_rows, 0.7 * plan.base_rate, "dense",
                schedule={"kind": "linear", "floor": 0.0},
            ),
        ],
        sources=[
            _notes("easy", plan.trained, first * plan.base_rows, prose=0.1, questions=0.75),
            _notes("dense", plan.trained, second * plan.base_rows, **_DENSE),
        ],
    )  # fmt: skip


def extended_recipe(plan: Plan, seed: int, model: str | Path, theta: float) -> dict[str, Any]:
    """The base trained further in longer rows with the new theta; embedding and head are frozen."""
    last = len(plan.extension) - 1
    return _recipe(
        seed,
        model=str(model),
        freeze=["embed_tokens", "lm_head", "model.norm"],
        optimizer={"name": "adamw", "weight_decay": 0.01},
        memory={"checkpoint": False, "rows": max(rows for _, _, rows in plan.extension)},
        stages=[
            {
                **_stage(
                    length, steps, rows, plan.extension_rate, f"rows of {length}",
                    schedule={"kind": "linear", "floor": 0.0} if number == last else
                    {"kind": "constant", "warmup": 5},
                ),
                "theta": theta,
            }
            for number, (steps, length, rows) in enumerate(plan.extension)
        ],
        sources=[
            _notes(f"rows of {length}", length, steps * rows, **_DENSE)
            for steps, length, rows in plan.extension
        ],
    )  # fmt: skip


def derivative_recipe(plan: Plan, seed: int, model: str | Path) -> dict[str, Any]:
    """The base trained to shout, in short rows with the base's theta."""
    steps, rows = plan.derivative_steps, plan.base_rows
    return _recipe(
        seed,
        model=str(model),
        optimizer={"name": "adamw", "weight_decay": 0.01},
        memory={"checkpoint": False, "rows": rows},
        stages=[
            _stage(
                plan.trained, steps, rows, plan.derivative_rate, "skill",
                schedule={"kind": "linear", "warmup": 5, "stable": 0.5, "floor": 0.0},
            )
        ],
        sources=[
            _notes("skill", plan.trained, steps * rows, prose=0.1, questions=0.65, shout=0.6)
        ],
    )  # fmt: skip


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    """Write the recipe as YAML. Returns `path`."""
    write_text(path, yaml.safe_dump(recipe, sort_keys=False))
    return path


def _recipe(
    seed: int, *, stages: list[dict[str, Any]], sources: list[dict[str, Any]], **rest: Any
) -> dict[str, Any]:
    data = {"sources": sources}
    return {**rest, "stages": stages, "data": data, "save_every": 1000, "seed": seed}


def _stage(
    length: int, steps: int, rows: int, rate: float, source: str, **rest: Any
) -> dict[str, Any]:
    return {
        "length": length, "steps": steps, "batch": rows, "rate": rate, "mix": {source: 1}, **rest,
    }  # fmt: skip


def _notes(name: str, row: int, documents: int, **shares: float) -> dict[str, Any]:
    """Documents a little longer than a row: one that ended with it would teach that at that
    position the text ends, and no model would answer beyond it."""
    return {"name": name, "synthetic": "notes", "words": row + 2, "documents": documents, **shares}
