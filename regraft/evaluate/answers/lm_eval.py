"""Published suites through lm-evaluation-harness, the `eval` extra: `--suite lm-eval:mmlu`.

The harness gets the model that is already loaded, so a recipient with another RoPE is measured like
every other. A name is one of its tasks or groups, or a YAML file of a task of your own. Scores are
kept item by item, for paired retention. Two deviations of the harness (0.4.13) from RULER as
published: its `part` scorer takes the mean over references instead of the best, and essay and
common-word prompts stop growing when their text is used up; the tasks of `--suite ruler` do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regraft.errors import InputError
from regraft.evaluate.answers.model import LanguageModel
from regraft.evaluate.report.transfer import interval, ratio
from regraft.input_files import read_text

PREFIX = "lm-eval:"


def check(names: Sequence[str]) -> None:
    """Raises InputError where the harness is missing or knows no such task."""
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
            _own(name)
            continue
        known = known or set(TaskManager().all_tasks)
        if name not in known:
            raise InputError(f"lm-eval knows no task '{name}'; `lm-eval ls tasks` lists them.")


def measure(
    model: LanguageModel, tokenizer: Any, names: Sequence[str], limit: int | None, chat: bool
) -> dict[str, Any]:
    """name -> {"metric", "scores": of every item}. limit: items of each task, None for all."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    wrapped = HFLM(pretrained=model.model, tokenizer=tokenizer, batch_size=1)
    # to index the harness's own tasks takes seconds, each time
    own = all(name.endswith((".yaml", ".yml")) for name in names)
    manager = TaskManager(include_defaults=not own)
    found = {}
    for name in names:
        task = _own(name) if name.endswith((".yaml", ".yml")) else name
        said = lm_eval.simple_evaluate(
            model=wrapped, tasks=[task], limit=limit, log_samples=True, bootstrap_iters=0,
            apply_chat_template=chat, verbosity="ERROR", task_manager=manager,
        )  # fmt: skip
        metric, scores = "", []
        for samples in said["samples"].values():
            metric = _metric(samples[0])
            first = samples[0].get("filter")  # the harness scores a generation by several
            scores += [float(s[metric]) for s in samples if s.get("filter") == first]
        if not all(map(math.isfinite, scores)):
            raise InputError(
                f"lm-eval's {name} scores an item of {model.name} with NaN or infinity; leave the "
                "task out."
            )
        found[Path(name).stem] = {"metric": metric, "scores": scores}
    return found


def summarise(measures: dict[str, Any], matrix: bool) -> dict[str, Any]:
    """{"scores": model -> task -> figures, "retention": role -> task -> ratio}; takes the items'
    scores out of `measures`."""
    raw = {name: facts.pop("lm-eval") for name, facts in measures.items() if "lm-eval" in facts}
    scores: dict[str, Any] = {}
    for name, tasks in raw.items():
        for task, facts in tasks.items():
            low, high = interval(facts["scores"])
            scores.setdefault(name, {})[task] = {
                "metric": facts["metric"],
                "score": round(sum(facts["scores"]) / len(facts["scores"]), 6),
                "items": len(facts["scores"]),
                "interval": [round(low, 6), round(high, 6)],
            }
    retention = {}
    if matrix and raw:
        recipient = raw["recipient"]
        retention = {
            role: {
                task: ratio(facts["scores"], None, recipient[task]["scores"], None)
                for task, facts in tasks.items()
            }
            for role, tasks in raw.items()
            if role in ("theta only", "graft", "recovered")
        }
    return {"scores": scores, "retention": retention}


def _own(path: str) -> dict[str, Any]:
    import yaml

    try:
        task = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError):
        raise InputError(f"{path} is not plain YAML; give a task of lm-eval's.") from None
    if not isinstance(task, dict) or "task" not in task:
        raise InputError(f"{path} is no task of lm-eval's: it lacks 'task'.")
    return task


def _metric(sample: dict[str, Any]) -> str:
    """The first metric that is one number for one item."""
    for name in sample["metrics"]:
        if isinstance(sample.get(name), int | float):
            return str(name)
    raise InputError("A task of lm-eval's has no score for single items; leave it out.")
