"""The result in plain sentences, and what to do next: the first lines of the report."""

from __future__ import annotations

from regraft.evaluate.result import EvaluationRecord
from regraft.evaluate.statistics import mean
from regraft.units import format_tokens

_FEW_ITEMS = 20
_CEILING = 0.9  # a model that answers so much leaves others little to gain


def summary(result: EvaluationRecord) -> list[str]:
    """One sentence or more, the most important first."""
    lines = _graft(result) if "graft" in result.overall and result.matrix else _models(result)
    lines += _fidelity_not_available(result) + _judge_not_available(result)
    items = result.settings.items
    if result.cells and items < _FEW_ITEMS:
        lines.append(
            f"{items} items a cell say little: the intervals are wide. Next: --items 50 or more."
        )
    return lines


def _models(result: EvaluationRecord) -> list[str]:
    lines = []
    for name, scores in result.overall.items():
        far = list(scores)[-1]
        length = result.models[name].context_length
        line = f"{name} answers {scores[far]:.0%} at {_tokens(far)}"
        own = result.effective_length[name].own
        if own is not None:
            line += f" and holds 85% of its own best score up to {format_tokens(own)}"
        if far < length:
            line += f"; its context of {format_tokens(length)} was not tested in full (--lengths)"
        lines.append(f"{line}.")
    return lines


def _graft(result: EvaluationRecord) -> list[str]:
    overall = result.overall
    far = list(overall["donor"])[-1]
    ratios = result.ratios or {}
    task = "all" if "all" in ratios else result.overall_tasks[0]
    transfer = ratios[task][far].get("transfer graft")
    recipient, donor, graft = (overall[name][far] for name in ("recipient", "donor", "graft"))
    own, target = (result.models[name].context_length for name in ("recipient", "donor"))
    if transfer is not None:
        line = (
            f"At {_tokens(far)} the graft holds {transfer.value:.0%} (95%: "
            f"{transfer.low:.0%} to {transfer.high:.0%}) of what the donor gained over the "
            "recipient."
        )
        if transfer.low > 0.8:
            return [f"{line} Next: check short tasks (retention, drift) before you use it."]
        return [f"{line} Next: a higher rank, or a short recovery training (regraft train)."]
    line = f"Transfer at {_tokens(far)} is n/a:"
    if far <= own:
        wider = f"--lengths {format_tokens(min(2 * own, target))},{format_tokens(target)}"
        return [
            f"{line} no length beyond the recipient's own context of {format_tokens(own)} was "
            f"tested, so there is nothing to gain. Next: {wider}."
        ]
    if recipient >= _CEILING:
        return [
            f"{line} a ceiling, for the recipient alone answers {recipient:.0%} (the donor "
            f"{donor:.0%}, the graft {graft:.0%}). Next: longer --lengths or a harder --suite."
        ]
    if donor <= recipient:
        return [
            f"{line} the donor answers {donor:.0%}, no more than the recipient ({recipient:.0%}), "
            "so it has nothing to give here. Next: another donor, or lengths it is good at."
        ]
    return [
        f"{line} the donor's {donor:.0%} and the recipient's {recipient:.0%} differ by no more "
        "than noise. Next: more --items."
    ]


def _fidelity_not_available(result: EvaluationRecord) -> list[str]:
    """Why extraction fidelity is n/a at the greatest length, and what to do; nothing if it is
    available there for any adapter."""
    fidelity = result.fidelity
    if fidelity is None or not fidelity.ratios:
        return []
    task = "all" if "all" in fidelity.ratios else next(iter(fidelity.ratios))
    far, by_adapter = list(fidelity.ratios[task].items())[-1]
    if any(by_adapter.values()):
        return []
    tasks = result.overall_tasks if task == "all" else [task]

    def score(model: str) -> float:
        return mean([result.cells[model][name][far].score for name in tasks])

    base, donor = score(fidelity.base), score(fidelity.donor)
    line = f"Extraction fidelity at {_tokens(far)} is n/a:"
    scores = f"the donor answers {donor:.0%} and {fidelity.base} {base:.0%}"
    if base >= _CEILING:
        return [f"{line} {scores}, so little is left to gain. Next: longer --lengths."]
    if donor <= base:
        return [f"{line} {scores}, so the donor gained nothing. Next: longer --lengths."]
    return [f"{line} {scores}, which differ by no more than noise. Next: more --items."]


def _judge_not_available(result: EvaluationRecord) -> list[str]:
    """In which cells the judge's share is n/a, why, and what to do."""
    cells = [
        f"{model} in {task} at {_tokens(length)}"
        for model, tasks in result.cells.items()
        for task, by_length in tasks.items()
        for length, cell in by_length.items()
        if cell.judged == 0
    ]
    if not cells:
        return []
    more = f" and {len(cells) - 1} more cells" if len(cells) > 1 else ""
    return [
        f"The judge's share is n/a for {cells[0]}{more}: the judge answered neither yes nor no to "
        "any item. Next: another --judge-model."
    ]


def _tokens(length: int) -> str:
    return f"{format_tokens(length)} tokens"
