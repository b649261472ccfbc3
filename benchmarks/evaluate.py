"""Teacher-forced against generated scores of the same prompts; how long the whole suite takes.

    python benchmarks/evaluate.py demo-out            # a folder that `regraft demo` made

Both ways get the same prompts; a verdict is whether every reference was given. Generation is
transformers' generate with its cache, prompts of one length in batches, or one by one as harnesses
do it; greedy, for the task's own 2 tokens and for what RULER generates: 32 in its question tasks,
128 in its needle tasks (arXiv 2404.06654). The suite is every task that needs no file, perplexity
and drift, of a matrix of four models, with twins.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from harness import add_quick

from regraft.evaluate.answers.model import Source
from regraft.evaluate.answers.scoring import answer
from regraft.evaluate.prompts.haystack import open_corpus
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.suites import TASKS
from regraft.evaluate.tasks import Kit, Scoring
from regraft.units import parse_tokens

SUITE = "needle,ruler,beyond,toy,perplexity,drift"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--lengths", default="512,1024,2048")
    parser.add_argument("--items", type=int, default=30)
    parser.add_argument("--limits", default="2,32,128")
    parser.add_argument("--only", choices=("scoring", "suite"))
    add_quick(parser)
    options = parser.parse_args()
    suite, processes = SUITE, os.cpu_count() or 1
    if options.quick:
        options.lengths, options.items, options.limits, suite, processes = "128", 2, "2", "toy", 1
    print(f"torch {torch.__version__}, {os.cpu_count()} cores\n")
    if options.only != "suite":
        lengths = list(map(parse_tokens, options.lengths.split(",")))
        _scoring(options.demo, lengths, options.items, list(map(int, options.limits.split(","))))
    if options.only != "scoring":
        _suite(options.demo, options.lengths, options.items, suite, processes)


def _scoring(demo: Path, lengths: list[int], count: int, limits: list[int]) -> None:
    source, task = Source("model", str(demo / "graft-rank-16")), TASKS["notes"]
    model = source.load(torch.device("cpu"))
    kit = Kit(Prompter(source.tokenizer()), open_corpus("world"))

    def timed(
        items: list, scoring: Scoring, budget: int, max_new_tokens: int
    ) -> tuple[float, list[bool]]:
        def correct(some: list) -> list[bool]:
            answers = answer(
                model,
                kit.prompter,
                some,
                scoring,
                budget=budget,
                max_new_tokens=max_new_tokens,
                twins=False,
            )
            return [one.score == 1 for one in answers]

        correct(items[:4])  # warm
        began = time.perf_counter()
        right = correct(items)
        return (time.perf_counter() - began) / len(items), right

    print(f"# notes: teacher-forced against generated, {torch.get_num_threads()} threads\n")
    print("| tokens | generated | right, forced | right, generated | same | forced ms | one by one "
          "ms | batched ms | ratio | ratio, batched |")  # fmt: skip
    print("|--:" * 10 + "|")
    for length in lengths:
        items = [task.item(kit, length, number) for number in range(count)]
        forced, right = timed(items, "teacher", 2048, task.answer_tokens)
        for max_new_tokens in limits:
            single, generated = timed(items, "generate", 1, max_new_tokens)
            batched, _ = timed(items, "generate", 16384, max_new_tokens)
            same = sum(a == b for a, b in zip(right, generated, strict=True)) / count
            print(
                f"| {length} | {max_new_tokens} | {sum(right)}/{count} | {sum(generated)}/{count} "
                f"| {same:.1%} | "
                f"{1e3 * forced:.1f} | {1e3 * single:.1f} | {1e3 * batched:.1f} | "
                f"{single / forced:.1f} | {batched / forced:.1f} |",
                flush=True,
            )


def _suite(demo: Path, lengths: str, items: int, suite: str, processes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "regraft", "evaluate", "--matrix", f"recipient={demo / 'derivative'}",
            f"donor={demo / 'extended'}", f"graft={demo / 'graft-rank-16'}", "-o", f"{folder}/out",
            "--suite", suite, "--haystack", "world", "--lengths", lengths, "--items", str(items),
            "--quiet",
        ]  # fmt: skip
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
             "-m", *command],
            check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        seconds = time.perf_counter() - began
        cells = len(list(Path(folder, "out", "items", "graft").iterdir()))
    print(f"\n# The whole suite, {processes} processes\n")
    line = " ".join(command[:-1]).replace(f"{demo}/", "demo-out/").replace(f"{folder}/out", "out")
    print(f"    torchrun --nproc-per-node {processes} -m {line}\n")
    print("| cells of a model | items in each | prompts | s | prompts/s |")
    print("|--:" * 5 + "|")
    prompts = 4 * cells * items * 2
    print(f"| {cells} | {items} | {prompts} | {seconds:.0f} | {prompts / seconds:.0f} |")


if __name__ == "__main__":
    main()
