"""The sentences of a report: its title, the introduction, and notes on how to read the numbers."""

from __future__ import annotations

from regraft.evaluate.report.ruler_published import SOURCE, compare_with_published
from regraft.evaluate.report.summary import summary
from regraft.evaluate.report.tables import format_ratio
from regraft.evaluate.report.transfer import SHORT
from regraft.evaluate.result import ADAPTED_PREFIX, EvaluationRecord, FidelityRecord
from regraft.units import format_tokens


def title(result: EvaluationRecord) -> str:
    """The title of the card and the page."""
    return "What the graft carried over" if result.matrix else "What the models can do"


def introduction(result: EvaluationRecord) -> list[str]:
    """The summary, what the models are, and the scores of a matrix at the greatest length."""
    adapters = result.fidelity.adapters if result.fidelity else {}
    models = [
        f"{name}: {model.place}"
        + (f" with {adapters[name].place}" if name in adapters else "")
        + f" ({model.context})"
        for name, model in result.models.items()
    ]
    lines = [*summary(result), "; ".join(models) + "."]
    lines += scores(result)
    if result.fidelity:
        lines += _fidelity(result.fidelity)
    return lines


def scores(result: EvaluationRecord) -> list[str]:
    """The scores of a graft and of the models beside it at the greatest length, and what it kept of
    each skill that the recipient has beside its use of context; nothing without a graft."""
    if not result.ratios or "graft" not in result.overall:
        return []
    far = list(result.overall["donor"])[-1]
    ratios = result.ratios["all" if "all" in result.ratios else result.overall_tasks[0]][far]
    share = {name: f"{by_length[far]:.0%}" for name, by_length in result.overall.items()}
    recovered = f", recovered {share['recovered']}" if "recovered" in share else ""
    lines = [
        f"At {format_tokens(far)} tokens the recipient scores {share['recipient']}, with the "
        f"donor's RoPE alone {share['theta only']}, the donor {share['donor']}, the graft "
        f"{share['graft']}{recovered}: transfer {format_ratio(ratios['transfer graft'])}, of the "
        f"weights alone {format_ratio(ratios['weight transfer graft'])}."
    ]
    own = result.models["recipient"].context_length
    for task in (name for name, facts in result.tasks.items() if facts.skill):
        examined = result.cells.get("recipient", {}).get(task, {})
        length = max((n for n in examined if n <= own), default=None)
        if length is None:
            continue
        parts = [
            f"{name} {cells[task][length].score:.0%}"
            for name, cells in result.cells.items()
            if name in ("recipient", "theta only", "graft", "recovered") and task in cells
        ]
        lines.append(
            f"Of its own skill, {task}, at {format_tokens(length)} tokens: {', '.join(parts)}."
        )
    return lines


def _fidelity(fidelity: FidelityRecord) -> list[str]:
    """One sentence on the adapters: of all tasks combined or the first, at the greatest length."""
    ratios = fidelity.ratios
    if not ratios:
        return []
    task = "all" if "all" in ratios else next(iter(ratios))
    far, by_adapter = list(ratios[task].items())[-1]
    shares = "; ".join(
        f"{name.removeprefix(ADAPTED_PREFIX)}: {format_ratio(ratio)}"
        for name, ratio in by_adapter.items()
    )
    return [
        f"Share of the donor's gain over {fidelity.base} at {format_tokens(far)} tokens that the "
        f"adapters contain, applied to the base that they were extracted from: {shares}."
    ]


def notes(result: EvaluationRecord) -> list[str]:
    """What a reader has to know to judge the numbers."""
    return [
        *_general(result),
        *_matrix(result),
        *_truncated_texts(result),
        *_endpoint(result),
        *_judge(result),
        *_measures(result),
        *_suites(result),
    ]


def _general(result: EvaluationRecord) -> list[str]:
    return [
        f"{result.settings.items} items in each cell, the same for every model. Intervals are 95%: "
        "Wilson's for scores, paired bootstraps over items for ratios, Student's over texts for "
        "NLL.",
        *_shared_texts(result),
        "A twin is the same prompt without its evidence; a score on it was guessed. Tables show "
        "the highest score of the twins.",
        "Effective length: the greatest length at which, and at all shorter ones, the mean over "
        "the tasks that fit in every length reaches a threshold: 85.6% (RULER's), or 85% of the "
        "model's own mean at the shortest length. It is 'none' if the shortest length does not "
        "reach 85.6%, or if the model's mean there is within two standard errors of 0.",
        *_long_score(result),
    ]


def _long_score(result: EvaluationRecord) -> list[str]:
    if not any(result.long_score.values()):
        return []
    lengths = sorted(next(iter(result.overall.values())))
    short = [format_tokens(length) for length in lengths if length <= SHORT * lengths[0]]
    return [
        "LongScore (arXiv 2505.19293): (S - base) / base for the mean S at a length, with the mean "
        f"of the means at the short lengths ({', '.join(short)}) as base: what a model loses by "
        "length, whatever it can do on short text. n/a: the base is too near 0."
    ]


def _shared_texts(result: EvaluationRecord) -> list[str]:
    if result.settings.questions_per_text == 1:
        return []
    return [
        f"Up to {result.settings.questions_per_text} items of a task ask about the same text, "
        "which holds the evidence of all. Their intervals are bootstraps over texts, then over the "
        "questions of each, for scores too."
    ]


def _matrix(result: EvaluationRecord) -> list[str]:
    if not result.matrix:
        return []
    return [
        "'theta only' is the recipient's own weights with the donor's RoPE and length.",
        "Transfer is (graft - recipient) / (donor - recipient); weight transfer has 'theta only' "
        "instead of the recipient; retention is graft / recipient. n/a: the denominator is within "
        "two standard errors of 0.",
    ]


def _truncated_texts(result: EvaluationRecord) -> list[str]:
    lines = []
    for task, cells in next(iter(result.cells.values()), {}).items():
        if all(cell.text_share is None for cell in cells.values()):
            continue
        shares = ", ".join(
            f"{cell.text_share:.0%} at {format_tokens(length)}" for length, cell in cells.items()
        )
        lines.append(
            f"{task} is scored by its suite's metric ({result.tasks[task].scorer}). Texts longer "
            f"than the evaluated length are truncated; the share of their words that remains is "
            f"{shares}. The twin has no text."
        )
    return lines


def _endpoint(result: EvaluationRecord) -> list[str]:
    lines = []
    for name, model in result.models.items():
        if (served := model.endpoint) is None:
            continue
        scores = f"scored by {served.scores}" if served.scores else "which has no scores of prompts"
        line = f"{name} is {served.model} at {served.url}, sent {served.prompts}, {scores}."
        if served.unsupported:
            line += f" It was not examined by {', '.join(served.unsupported)}."
        lines.append(line)
    return lines


def _judge(result: EvaluationRecord) -> list[str]:
    if not result.settings.judge:
        return []
    return [
        f"The judge is {result.settings.judge_model}; it is asked yes or no about the answer and "
        "its references, not about the text. Its replies are in judge/; those that were neither "
        "do not count."
    ]


def _measures(result: EvaluationRecord) -> list[str]:
    lines = []
    if any(x.perplexity and x.perplexity.key_share is not None for x in result.measures.values()):
        chosen = "the donor's choice" if "donor" in result.models else "each model's own choice"
        lines.append(
            "Key tokens gain more than 2 nats by context beyond the largest window and cost less "
            f"than 2 with it (LongPPL, arXiv 2410.23771): {chosen}."
        )
    if result.fidelity:
        lines.append(
            "Extraction fidelity is (base with adapter - base) / (donor - base), both under the "
            "donor's RoPE and length; 'donor, rank 16' is the base with the adapter of rank 16."
        )
    return lines


def _suites(result: EvaluationRecord) -> list[str]:
    lines = []
    if any(name.startswith("niah") or name in ("vt", "cwe", "fwe") for name in result.tasks):
        lines.append(
            "The RULER tasks are built as NVIDIA builds them, with wording, words and haystack of "
            "our own: compare models within this page, not with published tables."
        )
    if compare_with_published(result):
        lines.append(
            f"Published: {SOURCE}; the mean of 13 tasks by its own harness, wording and haystack. "
            "The same model differs by ten points from harness to harness."
        )
    if any(task.scoring == "teacher" for task in result.tasks.values()):
        lines.append(
            "Teacher-forced: an answer counts if each of its tokens is the likeliest after all "
            "before it; several answers are expected in the order of the text."
        )
    return lines
