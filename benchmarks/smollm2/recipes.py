"""The training recipes of the experiment, at one of three sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Size:
    """The sizes of a run: tokens of each training, and questions of the evaluation.

    target: context length of the extension; growth: (length, steps, rows a step) of its stages;
    window: tokens of a PoSE row; lengths: of the questions; texts: of the NLL by position;
    calibration: tokens; rows: short ones in one forward pass; whole: the extension is trained on
    whole rows, and on PoSE rows for comparison, otherwise on PoSE rows alone; calibrated: the ranks
    of calibrated adapters.
    """

    target: int
    growth: tuple[tuple[int, int, int], ...]
    window: int
    skill_length: int
    skill_steps: int
    skill_batch: int
    recovery_steps: int
    lengths: tuple[int, ...]
    items: int
    questions_per_text: int
    texts: int
    calibration: int
    rows: int
    whole: bool = True
    calibrated: tuple[int, ...] = (8, 32, 128)

    @property
    def tokens(self) -> int:
        """Tokens that the extension is trained on."""
        return sum(length * steps * rows for length, steps, rows in self.growth)


SIZES = {
    "gpu": Size(
        target=32768, growth=((16384, 40, 2), (32768, 60, 1)), window=2048, skill_length=1024,
        skill_steps=80, skill_batch=32, recovery_steps=20, lengths=(4096, 8192, 16384, 32768),
        items=48, questions_per_text=4, texts=6, calibration=131072, rows=16,
    ),
    "cpu": Size(
        target=12288, growth=((12288, 14, 1),), window=2048, skill_length=256, skill_steps=40,
        skill_batch=8, recovery_steps=4, lengths=(4096, 12288), items=16, questions_per_text=4,
        texts=1, calibration=24576, rows=1, whole=False,
        calibrated=(8, 32),
    ),
    "quick": Size(
        target=512, growth=((512, 2, 1),), window=128, skill_length=64, skill_steps=2,
        skill_batch=2, recovery_steps=1, lengths=(128, 512), items=4, questions_per_text=2,
        texts=1, calibration=1024, rows=2,
    ),
}  # fmt: skip


def write(out: Path, name: str, recipe: dict[str, Any]) -> Path:
    """A recipe in the folder `recipes` of `out`, as JSON, which is a part of YAML."""
    folder = out / "recipes"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(json.dumps(recipe, indent=1))
    return folder / f"{name}.yaml"


def extension(size: Size, base: Path, texts: Path, rate: float, seed: int) -> dict[str, Any]:
    """Full fine-tuning on whole rows whose length grows."""
    return {
        **_common(base, texts, size, seed),
        "stages": [
            {"length": length, "steps": steps, "batch": rows, "rate": rate, **_warmup(steps)}
            for length, steps, rows in size.growth
        ],
    }


def pose(size: Size, base: Path, texts: Path, rate: float, seed: int) -> dict[str, Any]:
    """The same number of tokens in short rows whose positions reach over the whole length."""
    rows = max(1, size.growth[-1][0] * size.growth[-1][2] // size.window)
    steps = max(1, size.tokens // (rows * size.window))
    return {
        **_common(base, texts, size, seed),
        "stages": [
            {"length": size.target, "steps": steps, "batch": rows, "rate": rate, **_warmup(steps)}
        ],
        "positions": {"kind": "pose", "window": size.window},
        "memory": {"rows": size.rows},
    }


def derivative(size: Size, base: Path, texts: Path, rate: float, seed: int) -> dict[str, Any]:
    """Full fine-tuning on short rows with the skill."""
    stage = {"length": size.skill_length, "steps": size.skill_steps, "batch": size.skill_batch}
    return {
        **_common(base, texts, size, seed),
        "stages": [{**stage, "rate": rate, **_warmup(size.skill_steps)}],
        "data": _skill(texts),
        "memory": {"rows": 2 * size.rows},
    }


def recovery(
    size: Size, graft: Path, teacher: Path, texts: Path, rate: float, seed: int
) -> dict[str, Any]:
    """A short fine-tune of a graft on the text of its derivative, which may not lose the range."""
    stage = {"length": size.skill_length, "steps": size.recovery_steps, "batch": size.skill_batch}
    return {
        **_common(graft, texts, size, seed),
        "method": "recover",
        "recover": {"teacher": str(teacher), "distill": 1.0, "short": ["skill"]},
        "stages": [{**stage, "rate": rate, "mix": {"skill": 1}}],
        "data": {"sources": [_long(texts), *_skill(texts)["sources"]], "held_out": 0.05},
        "memory": {"rows": size.rows},
        "watch": {
            "every": 10, "rows": 2, "length": size.target, "needle": {"filler": "long", "rows": 4},
        },
    }  # fmt: skip


def full_delta(base: Path, extended: Path, derivative: Path) -> dict[str, Any]:
    """The derivative plus the whole change of the extension (task arithmetic)."""
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [
            {"model": str(model), "parameters": {"weight": 1.0}} for model in (derivative, extended)
        ],
        "context": {"from": str(extended)},
        "out_dtype": "bfloat16",
    }


def _common(model: Path, texts: Path, size: Size, seed: int) -> dict[str, Any]:
    return {
        "model": str(model),
        "method": "full",
        "dtype": "bfloat16",
        "data": {"sources": [_long(texts)]},
        "optimizer": {"name": "adamw", "weight_decay": 0.01},
        "export": {"dtype": "bfloat16"},
        "save_every": 100000,
        "seed": seed,
    }


def _long(texts: Path) -> dict[str, Any]:
    return {"name": "long", "jsonl": str(texts / "long.jsonl"), "rows": "whole"}


def _skill(texts: Path) -> dict[str, Any]:
    source = {"name": "skill", "jsonl": str(texts / "skill.jsonl"), "rows": "packed"}
    return {"sources": [source]}


def _warmup(steps: int) -> dict[str, Any]:
    return {"schedule": {"kind": "cosine", "warmup": min(10, steps // 4), "floor": 0.1}}
