"""Teacher-forced against generated scores of the same prompts on the same model.

    python benchmarks/evaluate.py MODEL [--task notes --haystack world --lengths 256,1024]

MODEL is a checkpoint folder, such as demo-out/extended of `regraft demo`. Both ways get the same
prompts; a verdict is whether every reference was given. Generation is batch by one, with
transformers' generate and its cache, as many tokens as the task keeps room for.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from regraft.evaluate.corpora import open_corpus
from regraft.evaluate.fitting import Prompter
from regraft.evaluate.model import Source
from regraft.evaluate.scoring import answer
from regraft.evaluate.suites import TASKS
from regraft.evaluate.tasks import Kit
from regraft.units import parse_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--task", default="notes")
    parser.add_argument("--haystack", default="world")
    parser.add_argument("--lengths", default="64,256,1024")
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--batch", type=int, default=2048)
    options = parser.parse_args()
    source = Source("model", options.model)
    model, task = source.load(torch.device("cpu")), TASKS[options.task]
    kit = Kit(Prompter(source.tokenizer()), open_corpus(options.haystack))
    print(f"# {options.task}: teacher-forced against generated, {Path(options.model).name}\n")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), batches of "
          f"{options.batch} tokens, {task.room} tokens generated at most\n")  # fmt: skip
    print("| tokens | items | right, forced | right, generated | same | forced s | generated s |"
          " ratio |")  # fmt: skip
    print("|--:|--:|--:|--:|--:|--:|--:|--:|")
    for length in map(parse_tokens, options.lengths.split(",")):
        items = [task.item(kit, length, number) for number in range(options.items)]
        verdicts, seconds = [], []
        for scoring in ("teacher", "generate"):
            answer(
                model, kit.prompter, items[:1], scoring, budget=options.batch, room=task.room,
                twins=False,
            )  # fmt: skip
            began = time.perf_counter()
            found = answer(
                model, kit.prompter, items, scoring, budget=options.batch, room=task.room,
                twins=False,
            )  # fmt: skip
            seconds.append(time.perf_counter() - began)
            verdicts.append([one["score"] == 1 for one in found])
        same = sum(a == b for a, b in zip(*verdicts, strict=True)) / len(items)
        print(
            f"| {length} | {len(items)} | {sum(verdicts[0])} | {sum(verdicts[1])} | {same:.1%} | "
            f"{seconds[0]:.2f} | {seconds[1]:.2f} | {seconds[1] / seconds[0]:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
