"""Jobs that are interrupted, killed or changed in the middle end as if they had not been."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
from graft_jobs import recipe
from models import contents

from regraft.adapters.extract import extract, factorize
from regraft.errors import InputError
from regraft.graft.job import graft_model


def test_an_interrupted_stage_continues_where_it_was(models, tmp_path, monkeypatch) -> None:
    def stop(*_, **__):
        raise RuntimeError("stopped")

    decomposed = []

    def deltas(base, extended, modules, device):
        decomposed.extend(modules)
        return real(base, extended, modules, device)

    real = factorize.deltas
    monkeypatch.setattr(factorize, "deltas", deltas)
    monkeypatch.setattr(extract, "write_adapter", stop)  # when all modules are decomposed
    given, out = recipe(tmp_path, models), tmp_path / "out"
    with pytest.raises(RuntimeError, match="stopped"):
        graft_model(given, out)
    assert decomposed
    decomposed.clear()
    with pytest.raises(RuntimeError, match="stopped"):
        graft_model(given, out)
    assert not decomposed


def test_a_second_job_on_the_same_folder_is_refused(models, tmp_path, children) -> None:
    given, out, gate = recipe(tmp_path, models), tmp_path / "out", tmp_path / "gate"
    import threading

    first: list[dict] = []
    job = threading.Thread(
        target=lambda: first.append(
            children.run("graft", given, "-o", out, "--quiet", gate=(8, gate))
        )
    )
    job.start()
    while not Path(f"{gate}.reached").exists():
        assert job.is_alive()
        time.sleep(0.01)
    with pytest.raises(InputError, match="Another regraft process is writing"):
        graft_model(given, out)
    gate.touch()
    job.join()
    assert first[0]["code"] == 0, first[0]["err"]


def test_a_recipe_changed_in_the_middle_ends_as_if_it_had_always_been_so(
    models, tmp_path, children
) -> None:
    (tmp_path / "first").mkdir()
    first = recipe(tmp_path / "first", models, "ranks: [8]", targets="derivative other")
    second, out = recipe(tmp_path, models), tmp_path / "out"
    whole = children.run("graft", second, "-o", out, "--quiet")
    assert whole["code"] == 0, whole["err"]
    expected = contents(out)
    for moment in (60, 150):  # in the extraction, and after it
        shutil.rmtree(out)
        killed = children.run("graft", first, "-o", out, "--quiet", die=moment)
        assert killed["code"] == -9
        refused = children.run("graft", second, "-o", out, "--quiet")
        assert refused["code"] == 2
        assert "another recipe" in refused["err"]
        done = children.run("graft", second, "-o", out, "--quiet", "--resume")
        assert done["code"] == 0, done["err"]
        assert contents(out) == expected


def test_killed_anywhere_the_same_line_ends_with_the_same_bytes(models, tmp_path, children) -> None:
    (tmp_path / "work").mkdir()
    given = recipe(tmp_path, models, targets="derivative other")
    out = tmp_path / "out"
    whole = children.run("graft", given, "-o", out, "--quiet")
    assert whole["code"] == 0, whole["err"]
    expected = contents(out)
    rng = random.Random(0)
    for moment in sorted(rng.sample(range(1, whole["calls"] + 1), 2)):
        shutil.rmtree(out)
        killed = children.run("graft", given, "-o", out, "--quiet", die=moment)
        assert killed["code"] == -9, moment
        deaths = 0
        while True:  # again and again, a little later each time
            deaths += 1
            again = children.run(
                "graft", given, "-o", out, "--quiet", die=40 * deaths if deaths < 3 else None
            )
            if again["code"] == 0:
                break
            assert again["code"] == -9, again["err"]
        assert contents(out) == expected, moment
