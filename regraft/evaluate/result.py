"""result.json as typed records: what an evaluation measured, and how it is read again.

A cell is one task at one length for one model. Mappings by length have the length in tokens as
their key. All intervals are 95%.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from regraft.evaluate.settings import Settings
from regraft.evaluate.statistics import Ratio
from regraft.input_files import JsonObject
from regraft.records import SCHEMA_VERSION, read_record

FILE = "result.json"
ADAPTED_PREFIX = "donor, "
"""The names of a base with an adapter begin with it, such as 'donor, rank 16'."""
Interval = tuple[float, float]
Verdict = Literal["agrees", "disagrees", "no verdict"]


# What one model did.


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer to one item, a line of items/MODEL/TASK-LENGTH.jsonl.

    score: 0 to 1. nll: the mean over the reference's tokens, in nats; said: the text of the answer;
    either is None where the scoring does not give it. twin, twin_nll: the same for the item's twin.
    tokens, unique_share: of the prompt. depth: where the evidence is, 0 to 1; on_grid: the item
    belongs to the grid of length and depth. text_share: the part of the text's words that fitted.
    hash: of everything that the model read. text: the number of the text that it shares with other
    items, None if it has its own. judge: None if no judge read the answer.
    """

    number: int
    tokens: int
    unique_share: float
    depth: float | None
    on_grid: bool
    scoring: str
    score: float
    hash: str
    text: int | None = None
    text_share: float | None = None
    nll: float | None = None
    said: str | None = None
    twin: float | None = None
    twin_nll: float | None = None
    judge: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The means over a cell's answers.

    depths: score by depth, of the items on the grid. judge: the share of answers that the judge
    agrees with, of the `judged` ones on which it gave a verdict. precision, recall, f1: of
    yes-or-no answers.
    """

    score: float
    items: int
    interval: Interval
    tokens: float
    unique_share: float
    nll: float | None = None
    nll_interval: Interval | None = None
    twin: float | None = None
    twin_nll: float | None = None
    twin_nll_interval: Interval | None = None
    text_share: float | None = None
    judge: float | None = None
    judged: int | None = None
    depths: dict[str, float] | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


@dataclass(frozen=True, kw_only=True)
class EffectiveLength:
    """The greatest length whose score reaches RULER's threshold, and the model's own; None if not
    even the shortest does."""

    ruler: int | None
    own: int | None


# Measures without questions.


@dataclass(frozen=True, kw_only=True)
class PerplexityIntervals:
    """Intervals over texts; None where there is one text only."""

    mean: Interval | None
    gain: dict[str, Interval | None]


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """NLL of plain text in nats; see `answers.perplexity`.

    nll: by position, such as '64-128'. perplexity: exp of the mean, None where no float holds it.
    gain: by window, what context beyond it is worth. key_share, long_perplexity: of key tokens.
    """

    nll: dict[str, float]
    mean: float
    perplexity: float | None
    intervals: PerplexityIntervals
    gain: dict[str, float]
    key_share: float | None = None
    long_perplexity: float | None = None


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far a model is from the first one on short text; see `answers.drift`. kl: in nats;
    top1: share of positions with the same likeliest token; cosine: of the last hidden states."""

    kl: float
    top1: float
    cosine: float
    positions: int


@dataclass(frozen=True, kw_only=True)
class HarnessScores:
    """The scores of every item of one lm-eval task."""

    metric: str
    scores: list[float]


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The figures of one model that need no questions.

    lm_eval: by task, until the result is written, which has `PublishedSuites` instead.
    """

    perplexity: Perplexity | None = None
    drift: Drift | None = None
    lm_eval: dict[str, HarnessScores] | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """The mean score of one lm-eval task."""

    metric: str
    score: float
    items: int
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class PublishedSuites:
    """lm-eval's tasks: scores by model and task, and retention by role and task."""

    scores: dict[str, dict[str, PublishedScore]]
    retention: dict[str, dict[str, Ratio | None]]


# The whole evaluation.


@dataclass(frozen=True, kw_only=True)
class EndpointRecord:
    """How requests to a served model were made; see `answers.served.protocol`.

    url: without secrets. model: its name there. prompts: the form of the prompts; scores: of the
    log-probabilities, None if there are none. unsupported: tasks and measures that were left out.
    """

    url: str
    model: str
    prompts: str
    scores: str | None
    unsupported: list[str]


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model as it was evaluated. context: its RoPE and length in words. endpoint: of a served
    model, whose weights are not known, so that it has no fingerprint."""

    place: str
    fingerprint: str
    context: str
    context_length: int
    endpoint: EndpointRecord | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluatedTask:
    """A task as it was run; see `tasks.Task`."""

    skill: bool
    scorer: str
    judged: bool
    scoring: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The first item of a task at its shortest length, and every model's answer."""

    task: str
    length: int
    prompt: str
    twin: str
    references: list[str]
    answers: dict[str, Answer]


@dataclass(frozen=True, kw_only=True)
class EvaluatedAdapter:
    """An adapter whose extraction fidelity was measured. rank: the mean over its modules."""

    place: str
    rank: float
    sha256: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class FidelityRecord:
    """Extraction fidelity by task (or 'all'), length and adapter; None where the donor's gain is
    within noise. base, donor: names of models."""

    base: str
    donor: str
    adapters: dict[str, EvaluatedAdapter]
    ratios: dict[str, dict[int, dict[str, Ratio | None]]]


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """result.json.

    cells: by model, task and length. overall: means over `overall_tasks`, by model and length.
    long_score: by model and length; see `report.transfer.long_score`.
    ratios: transfer and retention by task (or 'all'), length and name, of a matrix.
    """

    matrix: bool
    models: dict[str, EvaluatedModel]
    settings: Settings
    tasks: dict[str, EvaluatedTask]
    cells: dict[str, dict[str, dict[int, Cell]]]
    overall: dict[str, dict[int, float]]
    overall_tasks: list[str]
    effective_length: dict[str, EffectiveLength]
    measures: dict[str, Measures]
    published: PublishedSuites
    samples: list[Sample]
    versions: dict[str, str]
    long_score: dict[str, dict[int, Ratio | None]] = field(default_factory=dict)
    ratios: dict[str, dict[int, dict[str, Ratio | None]]] | None = None
    fidelity: FidelityRecord | None = None
    kind: Literal["evaluation"] = "evaluation"
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """The plan that a dry run prints: label -> value."""

    plan: dict[str, str | float]


def parse_answers(lines: list[JsonObject]) -> list[Answer]:
    """The answers of an items file, from its JSON lines."""
    answers: list[Answer] = _parser(list[Answer]).validate_python(lines)
    return answers


def parse_measures(facts: JsonObject) -> Measures:
    """The measures of one model, from JSON."""
    measures: Measures = _parser(Measures).validate_python(facts)
    return measures


@lru_cache
def _parser(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def read_result(folder: Path) -> EvaluationRecord:
    """The record of an evaluation's output folder. Raises CheckpointError naming a missing key."""
    return read_record(folder / FILE, EvaluationRecord, "run regraft evaluate again")
