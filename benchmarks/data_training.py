"""What the steps of `regraft data build` are worth: the same training with differently chosen text.

    python benchmarks/data_training.py [--seeds 2] [-o bench-out]

The demo's base (64 tokens) is extended to 512 by the same number of tokens of a crawl, from which
documents are chosen by different rules. The crawl has, about equally often: notes (facts, and
questions about them all over the text: what long context is for); plain prose; eight short notes in
one document; a short piece of notes repeated to the length; and short notes as documents of their
own. Every model is then asked for needles, and scored on held-out notes by position.

Prints a table and writes it to benchmarks/results/data_training.md. About ten minutes for a seed on
two busy cores.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean

import torch
from chosen_text.crawl import MIX, Size, crawl, words_of
from chosen_text.selection import selections
from demo_models import (
    THETA,
    TRAINED,
    Exam,
    base_recipe,
    examine,
    extended_recipe,
    write_recipe,
)
from harness import add_quick, environment, record

from regraft.data.build.scoring.causal_scorer import CausalScorer
from regraft.data.toy_language import training_row
from regraft.rope.laws import scaling_law
from regraft.train.job import train_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"))
    add_quick(parser)
    arguments = parser.parse_args()
    size = Size(128, 1, 4, 1, 6, 2) if arguments.quick else Size()
    exam = Exam(
        lengths=(TRAINED, size.target // 2, size.target), questions=8 if arguments.quick else 256,
        prose_rows=8,
    )  # fmt: skip
    started = time.time()
    results = [
        run_seed(seed, size, exam, arguments.out.resolve() / f"data-training-{seed}")
        for seed in range(2, 2 + (1 if arguments.quick else arguments.seeds))
    ]
    record("data_training", table(results, size, time.time() - started), keep=not arguments.quick)


@dataclass(frozen=True)
class Trained:
    """Shares of words by kind of document, needles by length, NLL of notes by position."""

    kinds: dict[str, float]
    needle: dict[int, float]
    nll: dict[str, float]


def run_seed(seed: int, size: Size, exam: Exam, folder: Path) -> dict[str, Trained]:
    """A training with each selection, from one base."""
    folder.mkdir(parents=True, exist_ok=True)
    exam = replace(exam, seed=seed)
    base = write_recipe(folder / "base.yaml", base_recipe(seed, quick=size.steps == 1))
    train_model(base, folder / "base", device="cpu", overwrite=True)
    # a model that reads the target length, as a scorer: trained on other notes
    rng, longer = random.Random(f"{seed} donor"), replace(size, steps=size.scorer)
    notes = [words_of(training_row(rng, size.target + 2, MIX)) for _ in range(longer.needed)]
    donor = train(folder, "donor", notes, longer, seed + 100)
    held_out = [
        words_of(training_row(random.Random(f"{seed} held out {n}"), size.target, MIX))
        for n in range(size.held_out)
    ]
    results = {"before": measure(folder / "base", held_out, exam, {})}
    for name, select in selections(str(donor), str(folder / "base"), size).items():
        if size.steps == 1 and name not in ("context gain", "shorts untied, keys"):
            continue
        chosen = select(crawl(seed, size), folder, seed)
        words = Counter[str]()
        for one in chosen:
            words[one.metadata["kind"]] += len(one.text.split())
        shares = {kind: count / words.total() for kind, count in words.items()}
        texts = [one.text for one in chosen]
        model = train(folder, name.replace(" ", "-"), texts, size, seed)
        results[name] = measure(model, held_out, exam, shares)
        print(seed, name, results[name], flush=True)
    return results


def train(folder: Path, name: str, texts: list[str], size: Size, seed: int) -> Path:
    """The base after `size.needed` rows of the texts, which follow each other in random order."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    recipe = extended_recipe(seed, folder / "base")
    recipe["memory"]["rows"] = size.rows
    recipe["stages"] = [{
        "length": size.target, "theta": scaling_law(THETA, TRAINED, size.target),
        "steps": size.steps, "batch": size.rows, "rate": 1e-3, "mix": {"text": 1},
        "schedule": {"kind": "linear", "warmup": 5, "floor": 0.0},
    }]  # fmt: skip
    recipe["data"] = {
        "sources": [{"name": "text", "jsonl": str(path), "rows": "joined"}],
        "cache": str(folder / "cache"), "held_out": 0,
    }  # fmt: skip
    written = write_recipe(folder / f"{name}.yaml", recipe)
    train_model(written, folder / name, device="cpu", overwrite=True)
    return folder / name


def measure(model: Path, held_out: list[str], exam: Exam, kinds: dict[str, float]) -> Trained:
    """Needles by length, and the NLL of held-out notes by position."""
    scorer = CausalScorer.open(str(model), torch.device("cpu"))
    rows = [scorer.ids(text) for text in held_out]
    length = min(map(len, rows))
    nll = torch.cat([scorer.last([row[:length]], length - 1) for row in rows]).mean(0)
    edges = sorted({0, TRAINED, length // 2, length})
    by_position = {
        f"{low}-{high}": float(nll[low : high - 1].mean()) for low, high in pairwise(edges)
    }
    return Trained(kinds, examine(model, exam).needle, by_position)


def table(results: list[dict[str, Trained]], size: Size, seconds: float) -> str:
    """The means over seeds."""
    first = results[0]["before"]
    lengths, positions = list(first.needle), list(first.nll)
    tokens = size.needed * size.target
    lines = [
        "# Choosing training text by the steps of regraft data build",
        "",
        f"{environment('transformers')}. The demo's base, {TRAINED} to {size.target} tokens, "
        f"{tokens:,} tokens of each choice; means of {len(results)} seeds, {seconds / 60:.0f} "
        "minutes in all.",
        "",
        "| text | words of | "
        + " | ".join(f"needles at {length}" for length in lengths) + " | "
        + " | ".join(f"NLL of notes {part}" for part in positions) + " |",
        "|---|---|" + "--:|" * (len(lengths) + len(positions)),
    ]  # fmt: skip
    for name in results[0]:
        every = [result[name] for result in results]
        kinds = {kind for one in every for kind in one.kinds}
        shares = {kind: mean(one.kinds.get(kind, 0) for one in every) for kind in kinds}
        listed = sorted(shares.items(), key=lambda item: -item[1])
        cells = [
            name,
            ", ".join(f"{share:.0%} {kind}" for kind, share in listed),
            *(f"{mean(one.needle[length] for one in every):.2f}" for length in lengths),
            *(f"{mean(one.nll[part] for one in every):.3f}" for part in positions),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
