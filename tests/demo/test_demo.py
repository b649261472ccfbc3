"""The demo: its language and exams, and the whole job with a few steps each."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace

import pytest

from regraft.data import toy_language
from regraft.data.toy_language import Mix, Row, exam_row, needle_count, training_row
from regraft.demo.job import run_demo
from regraft.errors import InputError
from regraft.records import to_json

LENGTHS = (64, 128, 256, 512, 1024)


def values_of(row: Row) -> list[str]:
    """The words of all values in the row's needles."""
    return [
        word
        for at, start in enumerate(row.words)
        if start == "note"
        for word in row.words[at + 2 : at + 4]
    ]


def answers_of(row: Row) -> list[tuple[int, tuple[str, ...]]]:
    """(index, answer) of each question."""
    return [(at, tuple(row.words[at : at + 2])) for at in row.answers]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("skill", ["ask", "shout"])
def test_every_question_of_an_exam_has_its_needle_in_a_row_of_the_stated_length(length, skill):
    rng = random.Random(length)
    depths = []
    for _ in range(20):
        row = exam_row(rng, length, skill)
        assert len(row.words) == length
        assert len(row.answers) == needle_count(length) == row.words.count("note")
        assert len(set(values_of(row))) == 2 * needle_count(length)
        for at, answer in answers_of(row):
            key = row.words[at - 1]
            needle = row.words.index(key)
            assert row.words[needle - 1] == "note"
            assert needle < min(row.answers) - 2
            value = tuple(row.words[needle + 1 : needle + 3])
            assert answer == (value if skill == "ask" else tuple(v.upper() for v in value))
            depths.append(needle / length)
    assert min(depths) < 0.2
    text_share = 1 - 5 * needle_count(length) / length  # the rest is questions
    assert max(depths) > 0.8 * text_share


@pytest.mark.parametrize("length", LENGTHS)
def test_every_question_can_be_answered_from_the_row(length):
    rng = random.Random(length)
    rows = [exam_row(rng, length, skill) for skill in ("ask", "shout") for _ in range(20)]
    assert all(row.answers for row in rows)
    rows += [training_row(rng, length, Mix(0.3, 0.65, shout=0.5)) for _ in range(20)]
    for row in rows:
        for at, answer in answers_of(row):
            assert toy_language.solve(row.words[: at + 2], at) == answer


def test_without_its_needle_a_question_is_a_guess():
    rng = random.Random(0)
    right = total = 0
    for _ in range(500):
        row = exam_row(rng, 128, hide=True)
        assert len(row.words) == 128
        assert "note" not in row.words
        with pytest.raises(ValueError, match="no needle"):
            toy_language.solve(row.words, row.answers[0])
        before = row.words[: row.answers[0]]
        guesses = [word for word in before if word in toy_language.VALUES] or list(
            toy_language.VALUES
        )
        right += rng.choice(guesses) == row.words[row.answers[0]]
        total += 1
    assert right / total < 3 / len(toy_language.VALUES)


@pytest.mark.parametrize("length", [64, 512])
def test_training_rows_ask_for_earlier_needles_only_and_mark_whole_answers(length):
    rng = random.Random(1)
    for _ in range(50):
        row = training_row(rng, length, Mix(0.45, 0.65))
        assert len(row.words) == length
        assert len(set(values_of(row))) == len(values_of(row))
        assert all(at + 2 <= length and row.words[at - 2] == "ask" for at in row.answers)


def test_needles_that_do_not_fit_in_a_row_are_refused():
    with pytest.raises(ValueError, match="do not fit in 32 words"):
        exam_row(random.Random(0), 32)


def test_the_saved_tokenizer_gives_the_ids_of_training(tmp_path):
    from transformers import AutoTokenizer

    from regraft.demo.exam import ids_of

    toy_language.write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(2)
    rows = [exam_row(rng, 256, "shout"), toy_language.prose_row(rng, 256)]
    assert ids_of(tokenizer, rows).tolist() == toy_language.encode(rows)
    words = " ".join(rows[0].words[1:])
    assert tokenizer.decode(tokenizer(words)["input_ids"], skip_special_tokens=True) == words
    assert len(tokenizer) == len(toy_language.WORDS) == len(set(toy_language.WORDS))


def test_no_document_of_the_recipes_ends_where_a_row_does():
    from regraft.demo import recipes

    plan = recipes.Plan()
    for recipe in (
        recipes.base_recipe(plan, 1),
        recipes.derivative_recipe(plan, 1, "b"),
        recipes.extended_recipe(plan, 1, "b", 9.0),
    ):  # fmt: skip
        words = {source["name"]: source["words"] for source in recipe["data"]["sources"]}
        for stage in recipe["stages"]:
            # <s> and as many words: the row's last label is a word, not the end of the text
            assert all(words[name] > stage["length"] for name in stage["mix"])


@pytest.fixture(scope="module")
def finished_demo(tmp_path_factory):
    """The whole demo with a few steps each, too few to learn anything."""
    from regraft.demo.recipes import Plan

    out = tmp_path_factory.mktemp("demo") / "out"
    plan = Plan(
        base_steps=(3, 2), base_rows=4, derivative_steps=3,
        extension=((2, 128, 2), (1, 256, 1)), target=256, lengths=(64, 256),
        ranks=(2, 4), questions=8, prose_rows=2,
    )  # fmt: skip
    return out, run_demo(out, seed=5, plan=plan), plan


def test_the_demo_writes_checkpoints_adapters_page_and_result(finished_demo):
    out, result, _ = finished_demo
    written = json.loads((out / "result.json").read_text())
    assert result.seconds is not None
    assert written == json.loads(json.dumps(to_json(replace(result, seconds=None))))
    models = ["base", "derivative", "derivative, theta only", "extended"]
    assert list(written["models"]) == [*models, "graft, rank 2", "graft, rank 4"]
    for exam in written["models"].values():
        assert set(exam["needle"]) == {"64", "256"}
        assert set(exam["prose_nll"]) == {"0-64", "64-256"}
        assert (out / exam["folder"] / "model.safetensors").is_file()
        assert (out / exam["folder"] / "tokenizer.json").is_file()
    assert (out / "adapter-rank-4" / "adapter_model.safetensors").is_file()
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "| graft, rank 4 |" in (out / "README.md").read_text()
    assert written["seed"] == 5
    assert {"torch", "transformers", "regraft"} <= set(written["versions"])
    assert 0 < written["adapter_error"]["graft, rank 4"] < written["adapter_error"]["graft, rank 2"]


def test_grafts_are_examined_with_the_extended_context_and_controls_differ_in_theta_only(
    finished_demo,
):
    from safetensors.torch import load_file

    out, result, plan = finished_demo
    short = {"base", "derivative"}
    for name, exam in result.models.items():
        expected = (plan.trained, plan.theta) if name in short else (256, result.theta.target)
        assert (exam.context, exam.theta) == expected, name
    control = load_file(out / "derivative-theta-only" / "model.safetensors")
    own = load_file(out / "derivative" / "model.safetensors")
    graft = load_file(out / "graft-rank-4" / "model.safetensors")
    assert all(own[name].equal(tensor) for name, tensor in control.items())
    changed = {name for name, tensor in graft.items() if not own[name].equal(tensor)}
    assert changed == {name for name in own if name.endswith("_proj.weight")}


def test_the_same_seed_gives_the_same_files(finished_demo, tmp_path):
    out, _, plan = finished_demo
    run_demo(tmp_path / "again", seed=5, plan=plan)
    for name in ("result.json", "graft-rank-4/model.safetensors", "demo.png", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name


def test_the_screen_shows_every_model_and_what_is_unusual(finished_demo):
    from rich.console import Console

    from regraft.demo.page import render

    _, result, _ = finished_demo
    console = Console(width=120, file=io.StringIO())
    console.print(render(result), markup=False)  # as the command line prints
    printed = console.file.getvalue()
    for text in (*result.models, "looking one word", "standard deviation of 0.4", "Control"):
        assert text in printed
    assert "[dim]" not in printed


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not empty"):
        run_demo(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"
