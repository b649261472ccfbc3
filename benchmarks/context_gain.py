"""Whether the measures of `long_dependency` prefer whole texts, by a real model.

    python benchmarks/context_gain.py MODEL [TEXT ...] [--tokens 2048]

Context gain, LDS and LongAttn of the beginning of every text, of the same with its sentences
shuffled, of pieces of eight texts joined to the same length, and of one such piece repeated; the
gain of the last with copies counted, too. TEXT: two or more files; by default the largest modules
of Python's standard library. Prints a table and writes it to benchmarks/results/context_gain.md.
"""

from __future__ import annotations

import argparse
import random
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from harness import add_quick, environment, record

from regraft.data.boundaries import split
from regraft.data.build.scoring import segment_dependency
from regraft.data.build.scoring.attention_distance import Distance, FirstLayer, standard_scores
from regraft.data.build.scoring.causal_scorer import CausalScorer
from regraft.data.build.scoring.context_gain import Gain, measure
from regraft.data.build.scoring.segment_dependency import Dependency

JOINED = 8
RUN = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="a causal language model: a folder or Hub id")
    parser.add_argument("texts", nargs="*", type=Path)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--count", type=int, default=4, help="texts that are measured")
    add_quick(parser)
    arguments = parser.parse_args()
    files = arguments.texts or modules(JOINED)
    texts = [path.read_text(encoding="utf-8") for path in files]
    tokens, count = (128, 1) if arguments.quick else (arguments.tokens, arguments.count)
    with tempfile.TemporaryDirectory() as folder:
        model = toy(Path(folder) / "toy") if arguments.quick else arguments.model
        if model is None:
            parser.error("give a model")
        scorer = CausalScorer.open(model, torch.device("cpu"))
        windows = [tokens // 32, tokens // 8] if arguments.quick else [200, tokens // 4]
        started = time.time()
        gains = measure_all(scorer, texts, tokens, count, windows)
        result = table(
            Path(model).name, gains, windows, tokens, count, time.time() - started, files
        )
        started = time.time()
        others = measure_others(scorer, model, texts, tokens, count, segment=tokens // 8)
        result += other_table(others, tokens // 8, time.time() - started)
    record("context_gain", result, keep=not arguments.quick)


Gains = dict[str, list[dict[int, Gain]]]  # by kind of text: of each text, by window


def measure_all(
    scorer: CausalScorer, texts: Sequence[str], tokens: int, count: int, windows: list[int]
) -> Gains:
    """The gains of all texts."""
    gains: Gains = {}
    for number in range(count):
        for name, (text, run) in variants(scorer, texts, number, tokens).items():
            ids = scorer.ids(text)[:tokens]
            result = measure(scorer, ids, windows, context=len(ids), run=run)
            gains.setdefault(name, []).append(result)
            print(number, name, len(ids), result, flush=True)
    return gains


@dataclass
class Others:
    """By kind of text: LDS of each text that the gain was measured of, and the reach of the first
    layer in every text."""

    pairs: dict[str, list[Dependency]] = field(default_factory=dict)
    reach: dict[str, list[Distance]] = field(default_factory=dict)


def measure_others(
    scorer: CausalScorer, model: str, texts: Sequence[str], tokens: int, count: int, segment: int
) -> Others:
    """LDS of `count` texts and the reach of the first layer in all, which takes seconds."""
    layer, others = FirstLayer.open(model, torch.device("cpu")), Others()
    for number in range(len(texts)):
        for name, (text, run) in variants(scorer, texts, number, tokens).items():
            if run != RUN:
                continue
            ids = scorer.ids(text)[:tokens]
            others.reach.setdefault(name, []).append(layer.measure(ids, tokens))
            if number < count:
                rng = np.random.default_rng(number)
                result = segment_dependency.measure(
                    scorer, ids, segment=segment, pairs=500, rng=rng
                )
                others.pairs.setdefault(name, []).append(result)
                print(number, name, result, flush=True)
    return others


def variants(
    scorer: CausalScorer, texts: Sequence[str], number: int, tokens: int
) -> dict[str, tuple[str, int]]:
    """(text, shortest run that counts as a copy), by name."""
    whole = beginning(scorer, texts[number], tokens)
    sentences = split(whole)
    random.Random(number).shuffle(sentences)
    part = tokens // JOINED
    pieces = [
        beginning(scorer, texts[(number + other) % len(texts)], part) for other in range(JOINED)
    ]
    return {
        "whole": (whole, RUN),
        "sentences shuffled": ("".join(sentences), RUN),
        "eight texts joined": ("\n\n".join(pieces), RUN),
        "one piece repeated": ((pieces[0] + "\n\n") * JOINED, RUN),
        "one piece repeated, copies count": ((pieces[0] + "\n\n") * JOINED, 2 * tokens),
    }


def beginning(scorer: CausalScorer, text: str, tokens: int) -> str:
    """The first sentences of a text, of about as many tokens."""
    out: list[str] = []
    total = 0
    for sentence in split(text):
        total += len(scorer.tokenizer(sentence, add_special_tokens=False)["input_ids"])
        if total > tokens:
            break
        out.append(sentence)
    return "".join(out)


def table(
    model: str, gains: Gains, windows: list[int], tokens: int, count: int, seconds: float,
    files: Sequence[Path],
) -> str:  # fmt: skip
    """The means over texts."""
    names = ", ".join(path.name for path in files[:count])
    lines = [
        f"# Context gain of {tokens:,} tokens by {model}",
        "",
        f"{environment('transformers')}. Mean over {count} texts ({names}), in nats per token of "
        f"the second half; {seconds / 60:.0f} minutes. Copies are runs of {RUN} tokens.",
        "",
        "| text | "
        + " | ".join(f"gain over the last {window} | as a share of NLL" for window in windows)
        + " | copied |",
        "|---|" + "--:|" * (2 * len(windows) + 1),
    ]
    for name, every in gains.items():
        cells = []
        for window in windows:
            cells.append(f"{mean(one[window].mean for one in every):.3f}")
            cells.append(f"{mean(one[window].relative for one in every):.1%}")
        cells.append(f"{mean(one[windows[-1]].copied for one in every):.0%}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def other_table(others: Others, segment: int, seconds: float) -> str:
    """The means over texts."""
    reach = [(one.strength, one.variance) for every in others.reach.values() for one in every]
    scores = iter(standard_scores(np.array(reach)).tolist())
    longattn = {name: [next(scores) for _ in every] for name, every in others.reach.items()}
    lines = [
        "",
        "## By the other measures",
        "",
        f"LDS of the same texts, by pairs of segments of {segment} tokens; LongAttn of "
        f"{len(longattn['whole'])} texts, all kinds compared together, by the first layer; "
        f"{seconds / 60:.0f} minutes.",
        "",
        "| text | LDS | strong pairs | LongAttn | below the whole text in | attention to a quarter "
        "back or more |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, every in others.pairs.items():
        below = sum(a < b for a, b in zip(longattn[name], longattn["whole"], strict=True))
        cells = [
            name,
            f"{mean(pairs.score for pairs in every):.3f}",
            f"{mean(pairs.strong for pairs in every):.0%}",
            f"{mean(longattn[name]):+.2f}",
            "" if name == "whole" else f"{below} of {len(longattn[name])}",
            f"{mean(one.strength for one in others.reach[name]):.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def modules(count: int) -> list[Path]:
    """The largest modules of the standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return sorted(folder.glob("*.py"), key=lambda path: (-path.stat().st_size, path.name))[:count]


def toy(folder: Path) -> str:
    """An untrained toy."""
    from regraft.train.recipe.model import Toy
    from regraft.train.toy_model import write_toy

    write_toy(folder, Toy(length=256, theta=70), 0)
    return str(folder)


if __name__ == "__main__":
    main()
