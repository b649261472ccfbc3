"""The parts of the benchmark on SmolLM2: texts, skill, recipes, jobs."""

from __future__ import annotations

import importlib
import random
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evaluated import world_tokenizer

from regraft.data.build.schema import Body as DataBody
from regraft.data.build.steps.length import Length
from regraft.evaluate.prompts.haystack import World
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.tasks import Kit
from regraft.train.recipe.schema import Body

pytestmark = pytest.mark.bench


@pytest.fixture
def parts(monkeypatch) -> Any:
    """The modules of the benchmark."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    names = ("corpus", "evaluations", "jobs", "recipes", "reversal", "table")
    return SimpleNamespace(**{n: importlib.import_module(f"smollm2.{n}") for n in names})


def test_the_skill_is_solved_by_reading_the_question_and_not_its_twin(parts):
    kit = Kit(Prompter(world_tokenizer()), World())
    items = parts.reversal.REVERSAL.group(kit, 256, 0, 3)
    assert len({item.answer for item in items}) == 3
    for item in items:
        assert parts.reversal.solve(item.prompt) == item.references
        assert parts.reversal.solve(item.twin) != item.references
        assert item.prompt.rpartition("\n")[0] == items[0].prompt.rpartition("\n")[0]


def test_training_sentences_are_the_questions_with_their_answers(parts):
    sentence, backwards = parts.corpus.skill_sentence(random.Random(3))
    question, _, rest = sentence.partition(" are ")
    assert parts.reversal.solve(question + " are") == [backwards]
    assert rest == backwards + ".\n"


def test_novels_are_the_strings_of_an_r_package(parts, tmp_path):
    lines = [b"EMMA", b"", "café".encode()]
    strings = b"".join(b"\0\4\0\x09" + len(line).to_bytes(4, "big") + line for line in lines)
    vector = b"X\n" + bytes(12) + b"\0\0\0\x10" + len(lines).to_bytes(4, "big") + strings
    stream = len(vector).to_bytes(4, "big") + zlib.compress(vector)
    (tmp_path / "Rdata.rdb").write_bytes(stream + stream)
    assert list(parts.corpus.long_documents([tmp_path])) == ["EMMA\n\ncafé"] * 2


@pytest.mark.parametrize("name", ["gpu", "cpu", "quick"])
def test_recipes_are_valid_and_pose_sees_as_many_tokens(parts, name):
    size = parts.recipes.SIZES[name]
    folder = Path("x")
    pose = Body.model_validate(parts.recipes.pose(size, folder, folder, 1e-4, 1))
    whole = Body.model_validate(parts.recipes.extension(size, folder, folder, 1e-4, 1))
    Body.model_validate(parts.recipes.derivative(size, folder, folder, 1e-4, 1))
    recovery = Body.model_validate(parts.recipes.recovery(size, folder, folder, folder, 1e-4, 1))
    tokens = sum(stage.length * (stage.steps or 0) * stage.batch for stage in whole.stages)
    assert pose.positions.window is not None
    short = pose.stages[0].batch * pose.positions.window
    assert tokens - short < (pose.stages[0].steps or 0) * short <= tokens
    assert recovery.watch is not None


def test_selections_are_valid_recipes_of_rows_that_fill_the_training(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    benchmark = importlib.import_module("data_training_smollm2")
    size, folder = benchmark.Size(), Path("x")
    stage = Body.model_validate(benchmark._training_recipe(folder, folder, size, 1)).stages[0]
    assert stage.length * (stage.steps or 0) * stage.batch == size.length * size.rows
    for steps in benchmark.selections(size, folder).values():
        recipe = DataBody.model_validate(benchmark._build_recipe(folder, steps, folder, 1))
        last = [entry.step for entry in recipe.sources[0].steps][-1]
        if isinstance(last, Length):
            assert (last.join or last.minimum or 0) > size.length


def test_a_model_is_chosen_with_what_it_needs_in_order(parts, tmp_path):
    def job(name: str, *needs: str, after: tuple[str, ...] = ()) -> Any:
        return parts.jobs.Job(name, list, tmp_path, needs, after)

    jobs = [job("a"), job("x"), job("b", "a", after=("x", "a")), job("y", "b"), job("c", "b")]
    chosen = parts.jobs.with_needs(jobs, ["c"])
    assert [(one.name, one.after) for one in chosen] == [("a", ()), ("b", ("a",)), ("c", ())]


def test_groups_are_evaluated_without_models_that_failed_and_the_rest_alone(
    parts, tmp_path, monkeypatch
):
    names = ["derivative", "extended", "theta-only", "graft-8"]
    size = parts.recipes.SIZES["quick"]
    jobs = {job.name: job for job in parts.evaluations.evaluations(tmp_path, size, names, "cpu")}
    group, skill = jobs["scores-of-derivative"], jobs["skill-of-theta-only"]
    assert set(group.after) == {"derivative", "extended", "theta-only"}
    assert skill.needs == ("derivative",)
    assert "skill-of-derivative" not in jobs
    for name in ("derivative", "extended", "graft-8"):
        (tmp_path / name).mkdir()
    models = [word for word in group.work() if f"={tmp_path}" in word]
    assert models == [f"{name}={tmp_path / name}" for name in ("derivative", "extended")]
    (group.output).mkdir(parents=True)
    (group.output / "result.json").touch()
    scored = SimpleNamespace(models=["derivative", "extended"])
    monkeypatch.setattr("regraft.evaluate.result.read_result", lambda folder: scored)
    assert jobs["score-extended"].work() is None
    assert jobs["score-graft-8"].work()[1] == f"graft-8={tmp_path / 'graft-8'}"


def test_jobs_run_once_in_order_and_a_failure_stops_what_needs_it(parts, tmp_path):
    made: list[str] = []

    def job(name: str, *needs: str, after: tuple[str, ...] = (), fails: bool = False) -> Any:
        def work() -> None:
            made.append(name)
            if fails:
                raise ValueError("broken")
            (tmp_path / name).touch()

        return parts.jobs.Job(name, work, tmp_path / name, needs, after)

    jobs = [job("last", after=("a", "c")), job("c", "b"), job("b", "a", fails=True), job("a")]
    failed = parts.jobs.run_jobs(jobs, tmp_path / "logs", 2, 1, 60)
    assert made == ["a", "b", "last"]
    assert failed == {"b": "ValueError: broken", "c": "b failed"}
    with pytest.raises(ValueError, match="x, which is no job"):
        parts.jobs.run_jobs([job("c", "x")], tmp_path / "logs", 1, 1, 60)
    made.clear()
    assert parts.jobs.run_jobs([job("a")], tmp_path / "logs", 1, 1, 60) == {}
    assert made == []
    assert parts.jobs.run_jobs([job("late")], tmp_path / "logs", 1, 1, -1) == {
        "late": "no time left"
    }


def test_a_run_without_scores_leaves_the_tables_as_they_are(parts, tmp_path, capsys):
    (tmp_path / "options.json").write_text('{"size": "gpu"}')
    parts.table.write(tmp_path)
    assert "has scores yet" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["options.json"]
