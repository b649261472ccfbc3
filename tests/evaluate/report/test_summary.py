"""What the first lines say, what the page makes of hostile text, and lines on each other."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluated import cell, evaluate, record, toy
from matplotlib.axes import Axes
from models import LONG

from regraft.evaluate.report.figures import draw
from regraft.evaluate.report.files import write_report
from regraft.evaluate.report.overlap import covered_by
from regraft.evaluate.report.page import visible_text, write_page
from regraft.evaluate.report.plots import HEIGHT, TOP, curves, losses
from regraft.evaluate.report.screen import render
from regraft.evaluate.report.summary import summary
from regraft.evaluate.report.text import scores
from regraft.evaluate.result import (
    EvaluatedAdapter,
    EvaluatedModel,
    EvaluatedTask,
    EvaluationRecord,
    FidelityRecord,
    Measures,
    Perplexity,
    PerplexityIntervals,
    read_result,
)
from regraft.evaluate.settings import Settings
from regraft.evaluate.statistics import Ratio

RATIO = Ratio(value=0.9, low=0.85, high=0.95)


def matrix(far: int, scores: tuple[float, float, float], ratio: Any, items: int = 50) -> Any:
    names = ("recipient", "donor", "graft")
    return record(
        matrix=True, settings=Settings(items=items), cells={"donor": {}},
        overall={name: {far: s} for name, s in zip(names, scores, strict=True)},
        overall_tasks=["needle"], ratios={"needle": {far: {"transfer graft": ratio}}},
        models={
            name: EvaluatedModel(
                place="", fingerprint="", context="",
                context_length=65536 if name == "donor" else 8192,
            )
            for name in names
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (matrix(8192, (1, 1, 1), None), r"n/a: no length beyond.*8k.*Next: --lengths 16k,64k"),
        (matrix(16384, (1, 1, 1), None), r"a ceiling.*recipient alone answers 100%.*harder"),
        (matrix(16384, (0.2, 0.1, 0.1), None), r"no more than the recipient.*another donor"),
        (matrix(16384, (0.2, 0.3, 0.3), None), r"noise\. Next: more --items"),
        (matrix(16384, (0, 1, 0.9), RATIO), r"holds 90% \(95%: 85% to 95%\).*Next: check short"),
        (matrix(16384, (0, 1, 0.5), replace(RATIO, low=0.4)), r"Next: a higher rank"),
        (matrix(16384, (0, 1, 0.9), RATIO, items=5), r"5 items a cell say little"),
    ],
)
def test_a_plain_sentence_says_what_na_means_and_what_to_do(result: Any, message: str) -> None:
    assert re.search(message, " ".join(summary(result)))


def adapters(*ranks: int) -> dict[str, EvaluatedAdapter]:
    return {
        f"donor, rank {rank}": EvaluatedAdapter(place="", rank=rank, sha256={}) for rank in ranks
    }


def with_fidelity(base: float, donor: float, ratio: Any = None) -> Any:
    cells = {
        name: {"needle": {16384: cell(score)}} for name, score in (("base", base), ("donor", donor))
    }
    fidelity = FidelityRecord(
        base="base", donor="donor", adapters=adapters(2),
        ratios={"needle": {16384: {"donor, rank 2": ratio}}},
    )  # fmt: skip
    return record(cells=cells, overall_tasks=["needle"], fidelity=fidelity)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (with_fidelity(0.95, 1.0), r"n/a: the donor.* 95%, so little is left.*longer --lengths"),
        (with_fidelity(0.4, 0.4), r"base 40%, so the donor gained nothing.*longer --lengths"),
        (with_fidelity(0.4, 0.45), r"fidelity at 16k tokens is n/a: .*noise.*more --items"),
    ],
)
def test_a_sentence_says_why_fidelity_is_not_available(result: Any, message: str) -> None:
    assert re.search(message, " ".join(summary(result)))


def test_no_sentence_explains_fidelity_that_is_available() -> None:
    assert summary(with_fidelity(0.4, 0.9, RATIO)) == []


def test_a_sentence_says_why_the_judges_share_is_not_available() -> None:
    cells = {8192: cell(0.5, judged=0), 16384: cell(0.5, judge=0.5, judged=2)}
    (line,) = summary(record(cells={"m": {"qa_1": cells, "qa_hard_1": cells}}))
    assert line.startswith("The judge's share is n/a for m in qa_1 at 8k tokens and 1 more cells:")
    assert "neither yes nor no" in line
    assert "--judge-model" in line


def test_scores_have_the_control_the_recovered_graft_and_the_skill_of_the_recipient() -> None:
    result = matrix(65536, (0.1, 0.9, 0.8), None)
    ratios = {"transfer graft": RATIO, "weight transfer graft": None}
    of_skill = {"recipient": 1.0, "theta only": 0.7, "donor": 0.0, "graft": 0.95}
    result = replace(
        result, ratios={"needle": {65536: ratios}},
        overall={**result.overall, "theta only": {65536: 0.2}, "recovered": {65536: 0.85}},
        tasks={"shout": EvaluatedTask(skill=True, scorer="", judged=False, scoring="teacher")},
        cells={
            name: {"shout": {4096: cell(0.5), 8192: cell(score), 65536: cell(0.0)}}
            for name, score in of_skill.items()
        },
    )  # fmt: skip
    assert scores(result) == [
        "At 64k tokens the recipient scores 10%, with the donor's RoPE alone 20%, the donor 90%, "
        "the graft 80%, recovered 85%: transfer 0.90 [0.85, 0.95], of the weights alone n/a.",
        "Of its own skill, shout, at 8k tokens: recipient 100%, theta only 70%, graft 95%.",
    ]
    assert scores(record(overall={"m": {64: 1.0}})) == []


def test_lines_that_lie_on_each_other_are_counted() -> None:
    path, other = [(0.0, 1.0), (1.0, 2.0), (2.0, 2.0)], [(0.0, 5.0), (1.0, 2.0), (2.0, 2.0)]
    assert covered_by([path, path, path]) == [2, 1, 0]
    assert covered_by([path, other]) == [1, 0]  # the last segment is shared
    assert covered_by([path, [(0.0, 3.0), (1.0, 2.0), (2.0, 9.0)]]) == [0, 0]
    assert covered_by([[(1.0, 1.0)], [(1.0, 1.0)]]) == [1, 0]


def test_a_covered_line_of_every_figure_is_wider_and_solid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Any]] = []
    real = Axes.plot

    def plot(axes: Axes, *points: Any, **style: Any) -> Any:
        drawn.append(style)
        return real(axes, *points, **style)

    monkeypatch.setattr(Axes, "plot", plot)
    both = adapters(2, 4)
    ratios = {"needle": {length: dict.fromkeys(both, RATIO) for length in (8192, 16384)}}
    fidelity = FidelityRecord(base="base", donor="donor", adapters=both, ratios=ratios)
    assert draw(tmp_path, record(fidelity=fidelity)) == ["fidelity.png"]
    below, above = drawn
    assert below["linewidth"] > above["linewidth"]
    assert below["linestyle"] == "-" != above["linestyle"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> EvaluationRecord:
    root = tmp_path_factory.mktemp("summary")
    folder = toy(root / "m", **LONG)
    names = ["plain", "<b>x", "_$a^{$", "[bold]y|"]
    evaluate(
        [f"{name}={folder}" for name in names], root / "out", suite="toy", lengths="64,128",
        haystack="world", items=3, texts=2,
    )  # fmt: skip
    return read_result(root / "out")


def test_identical_lines_are_drawn_in_different_widths(
    result: EvaluationRecord, tmp_path: Path
) -> None:
    for plot in curves(result):
        widths = [line.width for line in plot.lines]
        assert len(set(widths)) == len(widths)
        assert widths == sorted(widths, reverse=True)
    assert draw(tmp_path, result) == ["curves.png"]


def test_losses_are_drawn_at_the_end_of_their_part_of_the_text(
    result: EvaluationRecord, tmp_path: Path
) -> None:
    def measures(*nll: float) -> Measures:
        parts = dict(zip(("0-64", "64-1024"), nll, strict=True))
        bounds = PerplexityIntervals(mean=None, gain={})
        return Measures(perplexity=Perplexity(nll=parts, mean=2.0, perplexity=7.4,
                                              intervals=bounds, gain={}))  # fmt: skip

    model = EvaluatedModel(place="", fingerprint="", context="", context_length=64)
    alone = record(models={"a": model, "b": model})
    assert losses(alone) == []
    alone = replace(alone, measures={"a": measures(2.0, 3.0), "b": measures(2.5, 2.0)})
    (plot,) = losses(alone)
    first, second = plot.lines
    assert [point.y for point in first.points] == [TOP + HEIGHT, TOP]
    assert [point.y for point in second.points] == [TOP + HEIGHT / 2, TOP + HEIGHT]
    assert [point.x for point in first.points] == [x for x, _ in plot.ticks]
    assert [label for _, label in plot.ticks] == ["64", "1k"]
    assert [label for _, label in plot.grid] == ["3.00", "2.75", "2.50", "2.25", "2.00"]
    assert draw(tmp_path, alone) == ["losses.png"]
    beside = replace(result, measures={"_$a^{$": measures(2.0, 3.0)})
    adapted = with_fidelity(0.4, 0.9, RATIO)  # the legend of these models has no adapters
    adapter = next(iter(adapted.fidelity.adapters))
    assert losses(replace(adapted, measures={adapter: measures(2.0, 3.0)})) == []
    (of_losses,), of_scores = losses(beside)[0].lines, curves(beside)[0].lines[2]
    assert (of_losses.key, of_losses.colour) == (of_scores.key, of_scores.colour)
    for one in (alone, beside):  # one legend hides and shows a model's lines in all figures
        write_page(tmp_path / "index.html", one)
        page = (tmp_path / "index.html").read_text()
        assert page.count('<ul class="legend">') == 1
        assert "NLL of plain text, by position" in page


def test_hostile_names_and_texts_stay_text(result: EvaluationRecord, tmp_path: Path) -> None:
    hostile = "</pre><script>alert(1)</script>\x1b[31m\x00\u202e\ud800" + "x" * 50_000
    (first, *_) = result.samples
    answers = {name: replace(answer, said=hostile) for name, answer in first.answers.items()}
    changed = replace(
        first, prompt=hostile, twin=hostile, references=[hostile[:60]], answers=answers
    )
    path = tmp_path / "index.html"
    write_page(path, replace(result, samples=[changed]))
    page = path.read_text()
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>x" not in page
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\ud800-\udfff]", page)
    assert "characters left out" in page
    assert len(page) < 400_000
    assert visible_text("a\tb\nc") == "a\tb\nc"
    write_report(tmp_path, result)
    card = (tmp_path / "README.md").read_text()
    assert "<b>x" not in card
    assert "| [bold]y\\| |" in card
    render(result)
