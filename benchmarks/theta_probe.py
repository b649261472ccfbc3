"""Whether the theta that the probe chooses beats the worst of its grid after a longer training.

    python benchmarks/theta_probe.py [--seed 2] [-o bench-out]

The demo's base (64 tokens), the probe at 512 tokens with 20 steps of LoRA each; then the winner and
the last of the grid are trained four times as long from another seed and tested on held-out
needles. Prints a table, writes it to benchmarks/results/theta_probe.md, exits with 1 if the winner
loses.
"""

from __future__ import annotations

import argparse
import json
import re
from datetime import date
from pathlib import Path

import torch
from demo_models import THETA, TRAINED, base_recipe, write_recipe
from harness import add_quick, record

from regraft.records import write_record
from regraft.train.job import train_model
from regraft.train.theta_probe import probe_theta

RECIPE = """
model: {base}
method: lora
lora: {{rank: 16, alpha: 32, norms: true}}
stages: [{{length: 512, steps: 80, batch: 8, rate: 3e-3, mix: {{long: 1}}{theta}}}]
{rope}
data:
  cache: {cache}
  held_out: 0.05
  sources:
    - {{name: long, synthetic: notes, words: 514, documents: 800}}
    - {{name: prose, synthetic: notes, words: 514, documents: 400, prose: 1}}
schedule: {{kind: linear, warmup: 3, floor: 0.05}}
memory: {{checkpoint: false, rows: 8}}
watch:
  every: 80
  rows: 8
  needle:
    fact: "note {{key}} {{value}} ;"
    question: "ask {{key}}"
    answer: "{{value}} ;"
    keys: [paris, oslo, cairo, lima, quito, delhi, tokyo, rome]
    values: [otter maple, copper violet, falcon pepper, marble cotton, tiger willow, silver olive]
    filler: prose
    rows: 32
seed: {seed}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"))
    add_quick(parser)
    arguments = parser.parse_args()
    quick = arguments.quick
    folder = arguments.out.resolve() / "theta-probe"
    folder.mkdir(parents=True, exist_ok=True)
    target = 128 if quick else 512
    path = write_recipe(folder / "base.yaml", base_recipe(arguments.seed, quick=quick))
    train_model(path, folder / "base", device="cpu", overwrite=True)

    def recipe(name: str, seed: int, theta: str = "", rope: str = "") -> Path:
        path = folder / f"{name}.yaml"
        text = RECIPE.format(
            base=folder / "base", cache=folder / "cache", seed=seed, theta=theta, rope=rope
        )
        if quick:
            text = re.sub(r"(steps|every|batch): \d+", r"\1: 1", text)
            text = re.sub(r"(documents|rows): \d+", r"\1: 8", text)
            text = text.replace("512", str(target)).replace("514", str(target + 2))
        path.write_text(text)
        return path

    result = probe_theta(
        recipe("probe", 0), TRAINED, target, THETA, steps=1 if quick else 20,
        search=3 if quick else 48, device="cpu",
    )  # fmt: skip
    after = {}
    for trial in (result.trials[0], result.trials[-1]):
        rope: dict[str, object] = {"family": trial.family}
        if trial.long_factor is not None:
            rope |= {"original": TRAINED, "long_factor": trial.long_factor}
        path = recipe("after", 1, f", theta: {trial.theta}", f"rope: {json.dumps(rope)}")
        trained = train_model(path, folder / "after", device="cpu", overwrite=True)
        after[trial.name] = trained.watch.last.needle
    lines = [
        "# regraft theta --probe on the demo's base, 64 to 512 tokens",
        "",
        f"{date.today()}, torch {torch.__version__}. 20 steps of LoRA 16 at each theta; chosen: "
        f"{result.chosen}, by {result.margin:.3f} nats. The winner and the last then trained "
        "for 80 steps from another seed. longrope: factors by formula, and the best of 48 lists by "
        "the needle NLL before training.",
        "",
        "| | theta | needle NLL before | after 20 | accuracy | nearest NLL | after 80: NLL "
        "| accuracy |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for trial in result.trials:
        later = after.get(trial.name)
        after_text = f"{later.nll:.3f} | {later.accuracy:.2f} |" if later else " | |"
        lines.append(
            f"| {trial.name} | {trial.theta:.6g} | {trial.zero_shot:.3f} "
            f"| {trial.needle_nll:.3f} | {trial.accuracy:.2f} | {trial.nearest_nll:.3f} "
            f"| {after_text}"
        )
    table = "\n".join(lines) + "\n"
    record("theta_probe", table, keep=not quick)
    write_record(folder / "probe.json", result)
    best, worst = (after[trial.name] for trial in (result.trials[0], result.trials[-1]))
    raise SystemExit(0 if quick or best.nll < worst.nll else 1)


if __name__ == "__main__":
    main()
