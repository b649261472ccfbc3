"""Published suites through lm-evaluation-harness, the `eval` extra: `--suite lm-eval:mmlu`.

The harness gets the model that is already loaded, so a recipient with another RoPE is measured like
any other model. A name is one of its tasks or groups, or a YAML file that defines a task. Scores
are recorded for each item, so that retention compares models item by item. The harness (0.4.13)
differs from RULER as published in two points in which `--suite ruler` does not: its `part` scorer
takes the mean over references instead of the maximum, and prompts of the essay and common-word
tasks are no longer than their source text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regraft.errors import InputError
from regraft.evaluate.answers.model import LanguageModel
from regraft.evaluate.result import HarnessScores, Measures, PublishedScore, PublishedSuites
from regraft.evaluate.statistics import Ratio, mean, ratio, score_interval
from regraft.input_files import JsonObject, read_text

PREFIX = "lm-eval:"


def check(names: Sequence[str]) -> None:
    """Raises InputError if the harness is not installed or has no such task."""
    if not names:
        return
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise InputError(
            f"--suite {PREFIX}{names[0]} needs lm-evaluation-harness: pip install 'regraft[eval]'"
        ) from None
    known = None
    for name in names:
        if name.endswith((".yaml", ".yml")):
            _read_task(name)
            continue
        known = known or set(TaskManager().all_tasks)
        if name not in known:
            raise InputError(f"lm-eval knows no task '{name}'; `lm-eval ls tasks` lists them.")


def measure(
    model: LanguageModel, tokenizer: Any, names: Sequence[str], limit: int | None, chat: bool
) -> dict[str, HarnessScores]:
    """The scores of each task by name. limit: items of each task, None for all."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    wrapped = HFLM(pretrained=model.model, tokenizer=tokenizer, batch_size=1)
    # indexing the harness's own tasks takes seconds, each time
    files_only = all(name.endswith((".yaml", ".yml")) for name in names)
    manager = TaskManager(include_defaults=not files_only)
    results = {}
    for name in names:
        task = _read_task(name) if name.endswith((".yaml", ".yml")) else name
        output = lm_eval.simple_evaluate(
            model=wrapped, tasks=[task], limit=limit, log_samples=True, bootstrap_iters=0,
            apply_chat_template=chat, verbosity="ERROR", task_manager=manager,
        )  # fmt: skip
        metric, scores = "", []
        for samples in output["samples"].values():
            metric = _metric(samples[0])
            # the harness scores a generated text once for each filter; the first one counts
            first = samples[0].get("filter")
            scores += [float(s[metric]) for s in samples if s.get("filter") == first]
        if not all(map(math.isfinite, scores)):
            raise InputError(
                f"lm-eval's {name} scores an item of {model.name} with NaN or infinity; leave the "
                "task out."
            )
        results[Path(name).stem] = HarnessScores(metric=metric, scores=scores)
    return results


def summarise(measures: Mapping[str, Measures], matrix: bool) -> PublishedSuites:
    """The mean scores of every model and, of a matrix, what the roles retain of the recipient's."""
    by_model = {name: facts.lm_eval for name, facts in measures.items() if facts.lm_eval}
    retention: dict[str, dict[str, Ratio | None]] = {}
    if matrix and by_model:
        recipient = by_model["recipient"]
        retention = {
            role: {
                task: ratio(facts.scores, None, recipient[task].scores, None)
                for task, facts in tasks.items()
            }
            for role, tasks in by_model.items()
            if role in ("theta only", "graft", "recovered")
        }
    scores = {
        name: {task: _summarise_task(facts) for task, facts in tasks.items()}
        for name, tasks in by_model.items()
    }
    return PublishedSuites(scores=scores, retention=retention)


def _summarise_task(facts: HarnessScores) -> PublishedScore:
    low, high = score_interval(facts.scores)
    return PublishedScore(
        metric=facts.metric,
        score=round(mean(facts.scores), 6),
        items=len(facts.scores),
        interval=(round(low, 6), round(high, 6)),
    )


def _read_task(path: str) -> JsonObject:
    import yaml

    try:
        task = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError):
        raise InputError(f"{path} is not plain YAML; give a task file of lm-eval.") from None
    if not isinstance(task, dict) or "task" not in task:
        raise InputError(f"{path} is not a task file of lm-eval: the key 'task' is missing.")
    return task


def _metric(sample: JsonObject) -> str:
    """The first metric that gives a number for a single item."""
    for name in sample["metrics"]:
        if isinstance(sample.get(name), int | float):
            return str(name)
    raise InputError("A task of lm-eval has no score for single items; leave the task out.")
