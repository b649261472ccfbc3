"""The measures of an evaluation: the bar that they move, and what they compute once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bars import shares_of
from evaluated import evaluate

from regraft import progress
from regraft.evaluate import measures
from regraft.evaluate.answers import drift, perplexity
from regraft.evaluate.measures import Measurer
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.tasks import Kit, Task

QUICK: dict[str, Any] = {"haystack": "world", "items": 2, "texts": 2}


def test_the_bar_moves_within_the_cells_and_every_measure(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "_DRIFT_TOKENS", 512)
    moves = shares_of(monkeypatch, "models")
    spans: dict[str, list[tuple[float, float]]] = {}

    def watch(label: str, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            at = len(moves)
            result = function(*arguments)
            assert len(set(moves[at:])) > 1, label
            spans.setdefault(label, []).append((moves[at - 1], moves[-1]))
            return result

        monkeypatch.setattr(owner, name, watched)

    watch("perplexity", perplexity, "measure")
    watch("drift", drift, "measure")
    watch("reference", drift.Reference, "__init__")
    models = [f"{name}={folders[name]}" for name in ("recipient", "graft")]
    evaluate(models, tmp_path / "out", suite="notes,perplexity,drift", lengths="128", **QUICK)
    assert moves == sorted(moves)
    assert moves[-1] == pytest.approx(1)
    (first, second), (reference,) = spans["drift"], spans["reference"]
    whole = second[1] - second[0]
    assert whole > 0.1
    assert first[1] - first[0] == pytest.approx(whole)
    assert reference[1] - reference[0] == pytest.approx(whole)
    assert reference[1] == pytest.approx(first[0])
    ends = [end for _, end in spans["perplexity"]]
    assert ends == pytest.approx([reference[0], second[0]])


def test_the_bar_skips_the_measures_of_an_interrupted_run(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "_DRIFT_TOKENS", 512)
    measure, measured = Measurer._measure, []

    def stop_at_second(self: Measurer, *arguments: Any) -> Any:
        measured.append(0)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    models = [f"{name}={folders[name]}" for name in ("recipient", "graft")]
    run = {**QUICK, "suite": "drift", "lengths": "64"}
    monkeypatch.setattr(Measurer, "_measure", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(models, tmp_path / "out", **run)
    shares: list[float] = []
    skip = progress.Bar.skip

    def skip_and_note(self: progress.Bar, amount: float) -> None:
        assert self._total
        shares.append(amount / self._total)
        skip(self, amount)

    monkeypatch.setattr(progress.Bar, "skip", skip_and_note)
    evaluate(models, tmp_path / "out", resume=True, **run)
    assert shares == [pytest.approx(2 / 3)]  # drift and its reference, of three parts


def test_texts_are_tokenized_once_for_all_models(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    grouped: list[tuple[int, int]] = []
    plain: list[int] = []
    encode, group, texts = Prompter._encode_answer, Task.group, perplexity.texts

    def spy_encode(self: Prompter, prompt: str, *more: Any) -> Any:
        encoded.append(prompt)
        return encode(self, prompt, *more)

    def spy_group(self: Task, kit: Kit, length: int, text: int, questions: int) -> Any:
        grouped.append((length, text))
        return group(self, kit, length, text, questions)

    monkeypatch.setattr(Prompter, "_encode_answer", spy_encode)
    monkeypatch.setattr(Task, "group", spy_group)
    monkeypatch.setattr(perplexity, "texts", lambda *a: plain.append(0) or texts(*a))
    models = [f"{name}={folders[name]}" for name in ("donor", "graft")]
    run = {**QUICK, "items": 2, "texts": 1, "depths": 2, "questions_per_text": 2}
    evaluate(models, tmp_path / "out", suite="needle,perplexity", lengths="96,128", **run)
    assert len(encoded) == len(set(encoded)) == 2 * 4
    assert len(grouped) == 2  # the first text of each length, which also says what they cost
    assert len(plain) == 1
