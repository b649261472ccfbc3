"""The same questions put to the same model by regraft and by lm-evaluation-harness.

    python benchmarks/lm_eval_agreement.py MODEL [--lengths 128,512,1024] [--items 100]

MODEL is a folder that `regraft demo` made, such as demo-out/models/shouter. The harness gets tasks
of every kind it has: loglikelihood (is the answer greedy?), multiple_choice, generate_until and
loglikelihood_rolling. Verdicts are compared item by item, NLL in nats. Prints a table, writes it to
benchmarks/results/lm_eval_agreement.md, and exits with 1 if a verdict in a hundred differs.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import add_quick, environment, record

from regraft.data.toy_language import prose_row
from regraft.evaluate.answers.model import LanguageModel, Source
from regraft.evaluate.answers.scoring import answer
from regraft.evaluate.prompts.haystack import open_corpus
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.tasks import Item, Kit, score_text
from regraft.evaluate.tasks.notes import NOTES
from regraft.units import format_tokens, parse_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--lengths", default="128,512,1024")
    parser.add_argument("--items", type=int, default=100)
    add_quick(parser)
    options = parser.parse_args()
    if options.quick:
        options.lengths, options.items = "64", 6
    source = Source("model", options.model)
    model, prompter = source.load(torch.device("cpu")), Prompter(source.tokenizer())
    kit = Kit(prompter, open_corpus("world"))
    rows, worst = [], 1.0
    for length in map(parse_tokens, options.lengths.split(",")):
        items = [NOTES.item(kit, length, number) for number in range(options.items)]
        others = [item.references[0] for item in items]
        items = [replace(item, candidates=_candidates(item, others)) for item in items]
        ours = {
            way: [one.score for one in answer(
                model, prompter, items, way, budget=2048, max_new_tokens=NOTES.answer_tokens,
                twins=False)]
            for way in ("teacher", "candidates", "generate")
        }  # fmt: skip
        theirs = _harness(model, prompter.tokenizer, items)
        for way, scores in ours.items():
            same = sum(a == b for a, b in zip(scores, theirs[way], strict=True)) / len(items)
            worst = min(worst, same)
            rows.append(
                f"| {format_tokens(length)} | {way} | {sum(scores) / len(scores):.3f} "
                f"| {sum(theirs[way]) / len(items):.3f} | {same:.0%} |"
            )
    nll, their_nll = _prose(model, prompter, max(map(parse_tokens, options.lengths.split(","))))
    rows.append(f"| prose | NLL, nats a document | {nll:.3f} | {their_nll:.3f} | |")
    text = [
        "# regraft evaluate and lm-evaluation-harness on the same questions",
        "",
        environment("transformers", "lm_eval"),
        "",
        f"{options.items} questions a length to {Path(options.model).name}; the share answered.",
        "",
        "| tokens | scoring | regraft | lm-eval | same verdict |",
        "|--:|---|--:|--:|--:|",
        *rows,
    ]
    record("lm_eval_agreement", "\n".join(text), keep=not options.quick)
    raise SystemExit(0 if worst >= 0.99 and abs(nll / their_nll - 1) < 1e-4 else 1)


def _candidates(item: Item, others: list[str]) -> list[str]:
    """The answer and three answers of other items."""
    rng = random.Random(item.hash)
    wrong = rng.sample([other for other in dict.fromkeys(others) if other != item.references[0]], 3)
    return [*wrong[:1], item.references[0], *wrong[1:]]


def _harness(model: LanguageModel, tokenizer: Any, items: list[Item]) -> dict[str, list[float]]:
    documents = [
        {
            "prompt": item.prompt, "answer": item.answer, "references": item.references,
            "candidates": [f" {candidate}" for candidate in item.candidates],
            "right": item.candidates.index(item.references[0]),
        }
        for item in items
    ]  # fmt: skip
    generated = {
        "output_type": "generate_until",
        "generation_kwargs": {
            "max_gen_toks": NOTES.answer_tokens, "do_sample": False, "until": ["\n"],
        },
        "process_results": lambda doc, answers: {
            "recall": score_text(answers[0], doc["references"], "all")
        },
        "metric_list": [{"metric": "recall", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    chosen = {
        "output_type": "multiple_choice", "doc_to_choice": "candidates", "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    forced = {"output_type": "loglikelihood", "metric_list": [{"metric": "acc"}]}
    return {
        "teacher": _run(model, tokenizer, documents, forced, "acc"),
        "candidates": _run(model, tokenizer, documents, chosen, "acc"),
        "generate": _run(model, tokenizer, documents, generated, "recall"),
    }


def _prose(model: LanguageModel, prompter: Prompter, length: int) -> tuple[float, float]:
    """Mean NLL of documents, ours and the harness's, which puts <s> in front of a rolling text
    itself and, unless add_bos_token is off, scores the tokenizer's own <s> after it."""
    rng = random.Random("prose")
    texts = [" ".join(prose_row(rng, length).words[1:]) for _ in range(8)]
    ours = []
    for text in texts:
        ids = prompter.ids(text)
        hidden = model.rows([ids[:-1]])
        ours.append(float(model.nll(hidden[0], torch.tensor(ids[1:]))[0].double().sum()))
    task = {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{prompt}}",
        "process_results": lambda doc, answers: {"nll": -answers[0]},
        "metric_list": [{"metric": "nll", "aggregation": "mean", "higher_is_better": False}],
    }  # fmt: skip
    documents = [{"prompt": text, "answer": ""} for text in texts]
    theirs = _run(model, prompter.tokenizer, documents, task, "nll", add_bos_token=False)
    return sum(ours) / len(ours), sum(theirs) / len(theirs)


def _run(
    model: LanguageModel, tokenizer: Any, documents: list[dict[str, Any]], task: dict[str, Any],
    metric: str, **options: Any,
) -> list[float]:  # fmt: skip
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, documents)))
        whole = {
            "task": f"same_{metric}", "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": str(path)}},
            "doc_to_text": "{{prompt}}", "doc_to_target": "{{answer}}", "target_delimiter": "",
            **task,
        }  # fmt: skip
        result = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model.model, tokenizer=tokenizer, batch_size=1, **options),
            tasks=[whole], log_samples=True, bootstrap_iters=0, verbosity="ERROR",
            task_manager=TaskManager(include_defaults=False),  # its own take ten seconds to list
        )  # fmt: skip
    samples = sorted(result["samples"][whole["task"]], key=lambda sample: sample["doc_id"])
    return [float(sample[metric]) for sample in samples]


if __name__ == "__main__":
    main()
