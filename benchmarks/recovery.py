"""What a recovery brings and loses: plain, with the veto, with distillation, with LinearARD.

    python benchmarks/recovery.py [--demo demo-out] [-o recovery-out]

Runs the demo first where its folder does not exist. Every arm recovers the same grafts with the
same short rows (notes, questions and the derivative's skill, within its 64 tokens; nobody was
trained on them), rate and steps. LinearARD (arXiv 2604.00004) adds the KL divergence of the rows of
softmax(X X^T / sqrt(d)), X = queries, keys and values of every layer and head after RoPE, between
the derivative under its native RoPE and the model. A chunk of rows of these relations exists at a
time, also in the backward pass.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from demo_models import TARGET, TRAINED, Answers, Exam, examine
from harness import add_quick, environment, record
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import regraft
from regraft import progress
from regraft.data.toy_language import KEYS, VALUES
from regraft.parallel import attention
from regraft.parallel.shards import Part
from regraft.train.record import TrainingRecord
from regraft.train.recovery import Recovery
from regraft.train.step.learner import Learner

CHUNK = 256  # rows of a relation that exist at a time


@dataclass(frozen=True)
class Arm:
    """A way to recover. likelihood: weight of the NLL; distill, relations: of the teacher's logits
    and of its relations; rate: times that of the options; veto: whether the long range is
    guarded."""

    name: str
    likelihood: float = 1.0
    distill: float = 0.0
    relations: float = 0.0
    rate: float = 1.0
    veto: bool = True


ARMS = (
    Arm("plain", veto=False),
    Arm("veto"),
    Arm("plain, rate x5", rate=5.0, veto=False),
    Arm("veto, rate x5", rate=5.0),
    Arm("veto, distillation", distill=1.0),
    Arm("LinearARD alone", likelihood=0.0, relations=1.0, veto=False),
    Arm("veto, LinearARD alone", likelihood=0.0, relations=1.0),
    Arm("veto, LinearARD", relations=1.0),
    Arm("veto, distillation, LinearARD", distill=1.0, relations=1.0),
)


@dataclass
class Options:
    demo: Path
    out: Path
    ranks: list[int]
    steps: int
    rate: float
    seeds: int
    quick: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"))
    parser.add_argument("-o", "--out", type=Path, default=Path("recovery-out"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[4])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=1, help="recoveries of each arm")
    add_quick(parser)
    options = Options(**vars(parser.parse_args()))
    exam, arms = Exam(), ARMS
    if options.quick:
        options = replace(options, steps=2, seeds=1)
        exam = exam.quick()
        arms = ARMS[-1:]
    if not options.demo.exists():
        if options.quick:
            raise SystemExit(f"{options.demo} does not exist: run `regraft demo` first")
        regraft.run_demo(options.demo)
    shutil.rmtree(options.out, ignore_errors=True)
    rows: list[list[str]] = []
    with progress.hide_notes():
        for name in ("shouter", "extended"):
            rows.append(line(f"*{name}*", [], [examine(options.demo / "trained" / name, exam)]))
        for rank in options.ranks:
            folder = options.out / f"graft-rank-{rank}"
            regraft.apply_lora(
                options.demo / "adapters" / f"rank-{rank}", options.demo / "trained/shouter", folder
            )
            rows.append(line(f"*{folder.name}*", [], [examine(folder, exam)]))
            for arm in arms:
                runs = [recover(options, folder, arm, seed) for seed in range(options.seeds)]
                exams = [examine(out, exam) for out, _ in runs]
                rows.append(line(arm.name, [result for _, result in runs], exams))
                print(" | ".join(rows[-1]), flush=True)
    page(options, exam, rows)


def recover(options: Options, graft: Path, arm: Arm, seed: int) -> tuple[Path, TrainingRecord]:
    folder = options.out / f"{graft.name}-{arm.name.replace(', ', '-').replace(' ', '-')}-{seed}"
    folder.mkdir(parents=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_of(options, graft, arm, seed)))
    with objective(arm):
        result = regraft.train_model(recipe, folder / "model", device="cpu")
    return folder / "model", result


def recipe_of(options: Options, graft: Path, arm: Arm, seed: int) -> dict[str, Any]:
    quick = options.quick
    batch, extra, long, held_out, needles = (2, 40, 30, 8, 4) if quick else (32, 300, 160, 256, 32)
    recover: dict[str, Any] = {
        "teacher": str(options.demo / "trained/shouter"), "drift": None, "every": 10,
        "rows": held_out, "distill": 1.0,  # its weight is in the arm
    }  # fmt: skip
    if not arm.veto:
        recover["veto"] = None
    skill = {
        "name": "skill", "synthetic": "notes", "words": TRAINED + 2, "rows": "packed",
        "documents": int(1.1 * batch * options.steps) + extra,
        "prose": 0.1, "questions": 0.65, "shout": 0.6,
    }  # fmt: skip
    far = {
        "name": "long", "synthetic": "notes", "words": TARGET + 2, "documents": long,
        "prose": 0.45, "questions": 0.65,
    }  # fmt: skip
    pairs = [f"{VALUES[i]} {VALUES[i + 1]}" for i in range(0, len(VALUES) - 1, 2)]
    needle = {
        "fact": "note {key} {value} ;", "question": "ask {key}", "answer": "{value}",
        "keys": list(KEYS), "values": pairs, "filler": "long", "rows": needles,
    }  # fmt: skip
    stage = {"length": TRAINED, "steps": options.steps, "batch": batch, "mix": {"skill": 1}}
    return {
        "model": str(graft), "method": "recover", "recover": recover,
        "optimizer": {"weight_decay": 0.01}, "memory": {"checkpoint": False, "rows": batch},
        "schedule": {"kind": "linear", "warmup": 5, "floor": 0.0},
        "stages": [{**stage, "rate": arm.rate * options.rate}],
        "data": {"held_out": 0.1, "sources": [skill, far]},
        "watch": {"every": 10, "length": TARGET, "rows": needles // 2, "sources": ["long"],
                  "needle": needle},
        "seed": 1000 + seed, "save_every": 10**6,
    }  # fmt: skip


@contextmanager
def objective(arm: Arm) -> Iterator[None]:
    """Training with the weights of the arm in place of the package's objective."""
    logits = Recovery.distance

    def distance(self: Recovery, learner: Learner, part: Part, short: list[bool]) -> Tensor:
        total = part["labels"].new_zeros((), dtype=torch.float32)
        if arm.distill:
            total = total + arm.distill * logits(self, learner, part, short)
        if arm.relations:
            total = total + arm.relations * relation_loss(self.teacher, learner, part)
        if arm.likelihood != 1.0:
            total = total + (arm.likelihood - 1.0) * learner(part)
        return total

    Recovery.distance = distance  # type: ignore[method-assign]  # for the arms only
    try:
        yield
    finally:
        Recovery.distance = logits  # type: ignore[method-assign]  # as it was


def relation_loss(teacher: Learner | None, learner: Learner, part: Part) -> Tensor:
    """KL of the relations, summed over the tokens, mean over layers and heads, sum over Q, K, V."""
    assert teacher is not None
    with torch.no_grad(), capture() as theirs:
        teacher(part, states=True)
    with capture() as ours:
        learner(part, states=True)
    # of a packed row only tokens of one document are related
    starts = part["position_ids"] == 0
    documents = starts.cumsum(-1)
    total = torch.zeros(())
    for mine, other in zip(ours, theirs, strict=True):
        for x, y in zip(mine, other, strict=True):
            total = total + relation_kl(x, y, documents, CHUNK) / (x.shape[1] * len(ours))
    return total


@contextmanager
def capture() -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """The queries, keys and values [B, H, S, D] that attention of each layer is called with."""
    from transformers import AttentionInterface

    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any):
        seen.append((query, key, value))
        return attention.attend_sequence(module, query, key, value, *rest, **named)

    AttentionInterface.register(attention.NAME, attend)
    try:
        yield seen
    finally:
        AttentionInterface.register(attention.NAME, attention.attend_sequence)


def relation_kl(x: Tensor, y: Tensor, documents: Tensor, chunk: int) -> Tensor:
    """Sum over rows of KL(softmax(y y^T / sqrt(d)) || softmax(x x^T / sqrt(d))), causal and within
    documents. x, y [B, H, S, d]; documents [B, S]. Holds `chunk` rows at a time."""
    total = x.new_zeros(())
    for start in range(0, x.shape[2], chunk):
        total = total + checkpoint(_rows_kl, x, y, documents, start, chunk, use_reentrant=False)
    return total


def _rows_kl(x: Tensor, y: Tensor, documents: Tensor, start: int, chunk: int) -> Tensor:
    rows = slice(start, start + chunk)
    index = torch.arange(x.shape[2])
    visible = (index[rows, None] >= index) & (documents[:, rows, None] == documents[:, None])
    logs = []
    for z in (x, y):
        scores = z[:, :, rows] @ z.transpose(-1, -2) * z.shape[-1] ** -0.5
        logs.append(F.log_softmax(scores.masked_fill(~visible[:, None], float("-inf")), -1))
    q, p = (log.masked_fill(~visible[:, None], 0.0) for log in logs)
    return (p.exp() * (p - q) * visible[:, None]).sum()


def line(name: str, results: list[TrainingRecord], exams: list[Answers]) -> list[str]:
    """Means over the recoveries of an arm."""

    def mean(values: list[float]) -> float:
        return statistics.mean(values)

    steps = [str(r.steps if r.choice is None else r.choice.step) for r in results]
    drifts = [next(d.drift for d in r.drift if d.step == int(step))
              for r, step in zip(results, steps, strict=True)]  # fmt: skip
    lengths, spans = exams[0].needle, list(exams[0].prose_nll)
    return [
        name, ", ".join(steps), f"{mean(drifts):+.3f}" if drifts else "",
        *(f"{mean([e.needle[n] for e in exams]):.1%}" for n in lengths),
        *(f"{mean([e.shout[n] for e in exams]):.1%}" for n in exams[0].shout),
        *(f"{mean([e.prose_nll[span] for e in exams]):.3f}" for span in (spans[0], spans[-1])),
    ]  # fmt: skip


def page(options: Options, exam: Exam, rows: list[list[str]]) -> None:
    head = ["recovery", "exported step", "drift",
            *(f"needles {n}" for n in exam.lengths),
            *(f"skill {n}" for n in (TRAINED, TARGET)),
            "short NLL", "far NLL"]  # fmt: skip
    table = "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
    text = f"""# Recovery on the demo's models

    python benchmarks/recovery.py --ranks {" ".join(map(str, options.ranks))} \\
      --steps {options.steps} --rate {options.rate:g} --seeds {options.seeds}

{environment("transformers")}

{table}

Exported step: 0 is the graft itself, which a veto leaves where no later weights keep the long
range. Drift: NLL of held-out short rows minus shouter's, in nats. Needles and skill: answers
in rows of each length, {exam.questions} questions each. NLL: of prose without
needles, at the first and at the last positions. Rows in italics are models that were not recovered.

The needles that a veto counts lie in rows with other notes, some on the same key, so that the graft
finds a third of them.
"""
    record("recovery", text, keep=not options.quick)


if __name__ == "__main__":
    main()
