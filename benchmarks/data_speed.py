"""Speed and memory of `regraft data build`, step by step, beside datatrove's MinHash.

    python benchmarks/data_speed.py [--python VENV/bin/python]

The text is generated: documents of about 4 kB, one in fifty of 200 kB, a tenth of them near
duplicates. A build reads, counts bytes as tokens, and writes Parquet; a step's speed is from the
CPU time that the build takes more with it. Larger inputs are for steps that could need memory.

VENV has datatrove: pip install datatrove spacy tokenizers regex tldextract 'xxhash<4'. Its four
stages (signatures, buckets, clusters, filter) run one after another in one process, with the same
bands, rows and length of word sequences, on the smallest input.

The table goes to benchmarks/results/data_speed.md.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import Child, add_quick, environment, print_each, record, run, script

STEPS = {
    "none": None,
    "quality": "quality: {letters: 0, compression: [0, 1]}",
    "dedup, exact": "dedup: {near: false}",
    "dedup, near": "dedup: {exact: false}",
    "length, cut": "length: {maximum: 16k}",
    "length, shares": "length: {buckets: [64k], shares: [0.3, 0.7]}",
    "length, join": "length: {join: 64k}",
    "mix": "mix: {weights: {text: 1}, tokens: TOKENS}",
}
LARGE = ("none", "quality", "dedup, near", "length, join")  # steps on larger inputs
DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils.hashing import HashConfig
source, work = sys.argv[1:]
config = MinhashConfig(
    hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5)
def stage(number, *steps, tasks=1):
    LocalPipelineExecutor(
        pipeline=list(steps), tasks=tasks, workers=1, logging_dir=f"{work}/log{number}").run()
stage(1, JsonlReader(source), MinhashDedupSignature(output_folder=f"{work}/sig", config=config))
stage(2, MinhashDedupBuckets(f"{work}/sig", f"{work}/buckets", config=config), tasks=14)
stage(3, MinhashDedupCluster(f"{work}/buckets", f"{work}/remove", config=config))
stage(4, JsonlReader(source), MinhashDedupFilter(f"{work}/remove"), JsonlWriter(f"{work}/out"))
"""


NOTES = """\
CPU seconds and peak memory are those of the whole process; of a build about 3.5 s and 350 MB are
imports, and with scikit-learn 12 s and 190 MB the map of domains. A speed of `none` is that of the
whole build; that of a step is from the difference to it, and '-' is a difference below the noise.
datatrove splits words by spaCy, regraft at every character that is no letter, digit or
underscore."""


@dataclass(frozen=True)
class Input:
    """Generated text in one JSON lines file."""

    folder: Path
    documents: int
    megabytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", help="of an environment with datatrove")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], help="MB of input")
    parser.add_argument(
        "--steps", choices=list(STEPS), nargs="+", help="only these; the table is only printed"
    )
    add_quick(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        sizes = [0.2] if options.quick else options.sizes
        inputs = [make_input(work / f"input-{i}", size) for i, size in enumerate(sizes)]
        lines = print_each(table(inputs, work, options.python, options.steps))
    head = [f"Speed of `regraft data build`. {environment('pyarrow', 'datasketch')}.", ""]
    record(
        "data_speed",
        "\n".join([*head, *lines, "", NOTES]),
        keep=not (options.quick or options.steps),
    )


def table(
    inputs: list[Input], work: Path, python: str | None, only: list[str] | None
) -> Iterator[str]:
    """The lines of the table. only: steps beside `none`, which the others are compared with."""
    yield (
        "| step | input MB | documents | CPU s | MB/s of the step | documents/s of the step | "
        "peak MB |"
    )
    yield "| --- | --: | --: | --: | --: | --: | --: |"
    for i, text in enumerate(inputs):
        base: Child | None = None
        steps = STEPS if i == 0 and len(inputs) > 1 else LARGE
        for step in steps if only is None else {"none": None, **dict.fromkeys(only)}:
            line = STEPS[step]
            child = build(text, line, work)
            base = base or child
            yield _row(step, text, child, None if line is None else base)
        if python is not None and i == 0:
            out = work / "datatrove"
            child = run([python, "-c", DATATROVE, str(text.folder), str(out)])
            yield _row("datatrove's MinHash, whole process", text, child, None)
            shutil.rmtree(out)


def build(text: Input, step: str | None, work: Path) -> Child:
    """One build in a process of its own."""
    recipe = work / "recipe.yaml"
    lines = [
        "sources:",
        f"  - {{name: text, licence: CC0-1.0, jsonl: {text.folder}}}",
        "output: {tokenizer: bytes}",
    ]
    if step is not None:
        tokens = str(int(text.megabytes * 5e5))  # about half of them
        lines += ["steps:", f"  - {step.replace('TOKENS', tokens)}"]
    recipe.write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = work / "out"
    child = run([script("regraft"), "data", "build", str(recipe), "-o", str(out), "--quiet"])
    shutil.rmtree(out)
    return child


def make_input(folder: Path, megabytes: float) -> Input:
    """Documents of words by Zipf's law in sentences and paragraphs."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 10))) for _ in range(20_000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    number, written = 0, 0.0
    before = ""
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        while written < megabytes * 1e6:
            count = 30_000 if number % 50 == 49 else rng.randint(200, 1000)
            chosen = rng.choices(words, weights, k=count)
            if number % 10 == 9 and before:  # a near duplicate of the document before
                text = before.replace(chosen[0], chosen[1])
            else:
                ends = [" "] * 11 + [". ", ".\n\n"]
                text = "".join(word + ends[i % 13] for i, word in enumerate(chosen))
            written += file.write(json.dumps({"text": text}) + "\n")
            before, number = text if count < 1001 else "", number + 1
    return Input(folder, number, written / 1e6)


def _row(step: str, text: Input, child: Child, base: Child | None) -> str:
    """base: the build without a step, whose time is not the step's."""
    seconds = child.cpu - (base.cpu if base is not None else 0)
    speed = [f"{amount / seconds:.3g}" if seconds > 0.05 else "-"
             for amount in (text.megabytes, text.documents)]  # fmt: skip
    cells = [step, f"{text.megabytes:.0f}", f"{text.documents:,}", f"{child.cpu:.1f}", *speed,
             f"{child.peak / 1e6:.0f}"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
