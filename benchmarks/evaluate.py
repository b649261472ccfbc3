"""Teacher-forced against generated scores of the same prompts; many questions about one text
against one at a time; how long the whole suite takes.

    python benchmarks/evaluate.py demo-out            # a folder that `regraft demo` made
    python benchmarks/evaluate.py demo-out --only sharing

Both ways get the same prompts; a verdict is whether every reference was given. Generation is
transformers' generate with its cache, prompts of one length in batches, or one by one as harnesses
do it; greedy, for the task's own 2 tokens and for what RULER generates: 32 in its question tasks,
128 in its needle tasks (arXiv 2404.06654). Questions about one text are asked of a random Llama (8
layers of 256, float32) by each scoring, and of the demo's graft, which has verdicts to compare; CPU
seconds, so that other work on the machine does not count. The suite is every task that needs no
file, perplexity and drift, of a matrix of four models, with twins.
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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from regraft.evaluate.answers.cache import cache_bytes
from regraft.evaluate.answers.model import LanguageModel, Source
from regraft.evaluate.answers.scoring import answer
from regraft.evaluate.prompts.haystack import open_corpus
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.result import Answer
from regraft.evaluate.suites import TASKS
from regraft.evaluate.tasks import Item, Kit, Scoring
from regraft.parallel import Mesh
from regraft.units import parse_tokens

SUITE = "needle,ruler,beyond,toy,perplexity,drift"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--lengths", default="512,1024,2048")
    parser.add_argument("--items", type=int, default=30)
    parser.add_argument("--limits", default="2,32,128")
    parser.add_argument("--shared-length", default="8k")
    parser.add_argument("--questions", type=int, default=16, help="about the text of that length")
    parser.add_argument("--alone", type=int, default=4, help="of them asked one by one, too")
    parser.add_argument("--only", choices=("scoring", "sharing", "suite"))
    add_quick(parser)
    options = parser.parse_args()
    suite, processes = SUITE, os.cpu_count() or 1
    if options.quick:
        options.lengths, options.items, options.limits, suite, processes = "128", 2, "2", "toy", 1
        options.shared_length, options.questions, options.alone = "256", 2, 1
    print(f"torch {torch.__version__}, {os.cpu_count()} cores\n")
    lengths = list(map(parse_tokens, options.lengths.split(",")))
    if options.only in (None, "scoring"):
        _scoring(options.demo, lengths, options.items, list(map(int, options.limits.split(","))))
    if options.only in (None, "sharing"):
        _sharing(parse_tokens(options.shared_length), options.questions, options.alone)
        _sharing_verdicts(options.demo, lengths)
    if options.only in (None, "suite"):
        _suite(options.demo, options.lengths, options.items, suite, processes)


def _scoring(demo: Path, lengths: list[int], count: int, limits: list[int]) -> None:
    source, task = Source("model", str(demo / "models/shouter")), TASKS["notes"]
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


def _sharing(length: int, questions: int, alone: int) -> None:
    """Questions about one text, asked of a random model that reads it once or for each."""
    torch.manual_seed(0)
    kit = Kit(Prompter(_tokenizer()), open_corpus("grammar"))
    config = LlamaConfig(
        vocab_size=len(kit.prompter.tokenizer), hidden_size=256, intermediate_size=688,
        num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=length, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    model = LanguageModel("random", LlamaForCausalLM(config).eval(), Mesh())
    size = cache_bytes(config.to_dict(), length, 4)
    print(f"\n# {questions} questions about a text of {length} tokens, random Llama, "
          f"{torch.get_num_threads()} threads; the cache takes {size / 1e6:.0f} MB\n")  # fmt: skip
    print("| task | scoring | asked one by one | CPU s a question | shared, CPU s a question | "
          "times faster | same answer | NLL apart by |")  # fmt: skip
    print("|---|---" + "|--:" * 6 + "|")
    ways: tuple[tuple[str, Scoring], ...]
    ways = (("needle", "teacher"), ("icl", "candidates"), ("needle", "generate"))
    for name, scoring in ways:
        task = TASKS[name]
        items = task.group(kit, length, 0, questions)
        single, first = _answers(model, kit, items[:alone], scoring, task.answer_tokens, False)
        shared, second = _answers(model, kit, items, scoring, task.answer_tokens, True)
        pairs = list(zip(first, second, strict=False))
        same = sum(a.said == b.said and a.score == b.score for a, b in pairs) / len(pairs)
        apart = max(abs((a.nll or 0) - (b.nll or 0)) for a, b in pairs)
        print(
            f"| {name} | {scoring} | {len(pairs)} | {single:.3f} | {shared:.3f} | "
            f"{single / shared:.1f} | {same:.0%} | "
            f"{f'{apart:.0e}' if first[0].nll is not None else 'n/a'} |",
            flush=True,
        )


def _sharing_verdicts(demo: Path, lengths: list[int], texts: int = 5, questions: int = 8) -> None:
    """The verdicts on the demo's graft."""
    source, task = Source("model", str(demo / "models/shouter")), TASKS["notes"]
    model = source.load(torch.device("cpu"))
    kit = Kit(Prompter(source.tokenizer()), open_corpus("world"))
    print("\n# notes: the verdicts on the demo's graft\n")
    print("| tokens | scoring | right, one by one | right, shared | same verdict | times faster |")
    print("|--:|---" + "|--:" * 4 + "|")
    for length in lengths:
        groups = [task.group(kit, length, text, questions) for text in range(texts)]
        items = [item for group in groups for item in group]
        ways: tuple[Scoring, ...] = ("teacher", "generate")
        for scoring in ways:
            single, first = _answers(model, kit, items, scoring, task.answer_tokens, False)
            shared, second = _answers(model, kit, items, scoring, task.answer_tokens, True)
            same = sum(a.score == b.score for a, b in zip(first, second, strict=True))
            print(
                f"| {length} | {scoring} | {sum(a.score == 1 for a in first)}/{len(items)} | "
                f"{sum(a.score == 1 for a in second)}/{len(items)} | {same / len(items):.1%} | "
                f"{single / shared:.1f} |",
                flush=True,
            )


def _answers(
    model: LanguageModel,
    kit: Kit,
    items: list[Item],
    scoring: Scoring,
    max_new_tokens: int,
    shared: bool,
) -> tuple[float, list[Answer]]:
    """(CPU seconds for each item, the answers)."""
    began = time.process_time()
    answers = answer(
        model, kit.prompter, items, scoring, budget=16384 if scoring == "generate" else 2048,
        max_new_tokens=max_new_tokens, twins=False, shared=shared,
    )  # fmt: skip
    return (time.process_time() - began) / len(items), answers


def _tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most 4096 tokens, learned from the grammar's prose."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=["<s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(open_corpus("grammar").pieces("tokenizer", 1000), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")


def _suite(demo: Path, lengths: str, items: int, suite: str, processes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "regraft", "evaluate", "--matrix", f"recipient={demo / 'trained/shouter'}",
            f"donor={demo / 'trained/extended'}", f"graft={demo / 'models/shouter'}",
            "-o", f"{folder}/out", "--suite", suite, "--haystack", "world", "--lengths", lengths,
            "--items", str(items), "--quiet",
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
