"""What all commands that write a folder share: no input is written over, no stage is silent, and
what the disk refuses names the file."""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import signal
from pathlib import Path

import models
import pytest
import torch
from evaluated import toy
from safetensors.torch import save_file

from regraft import progress
from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract.extract import extract_lora
from regraft.data.sources import Text, documents
from regraft.errors import InputError, OutputError
from regraft.evaluate.job import evaluate_models
from regraft.job import Job, job_hash
from regraft.merge.job import merge_models
from regraft.train.job import train_model
from regraft.write import library_writing, write_json

TRAINING = """
model: {{toy: {{length: 64, theta: 70, hidden: 32, intermediate: 48}}}}
stages: [{{length: 64, steps: 1}}]
data:
  cache: {cache}
  sources:
    - {{name: a, {source}, rows: packed}}
"""


def written_output(folder: Path) -> Path:
    """An earlier output into which its owner's texts were recorded, so that only the check of
    inputs protects them."""
    folder.mkdir(parents=True)
    texts = list(documents(Text("synthetic", "notes", documents=9, words=64)))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "short.jsonl").write_text(lines)
    (folder / "deep").mkdir()
    (folder / "deep/book.txt").write_text(" ".join(texts))
    (folder / "squad.json").write_text(json.dumps({"data": []}))
    return models.earlier_output(folder)


def refused(folder: Path, call, *args: object, **options: object) -> None:
    before = models.contents(folder)
    with pytest.raises(InputError, match="overlaps the input"):
        call(*args, overwrite=True, **options)
    assert models.contents(folder) == before


@pytest.mark.parametrize(
    "source",
    ["jsonl: {out}/short.jsonl", "text: {out}/deep/book.txt", "text: {out}", "text: {out}/deep",
     "jsonl: '{out}/*.jsonl'", "text: '{out}/**/*.txt'", "text: {above}",
     "text: '{above}/**/*.txt'"],
)  # fmt: skip
def test_training_text_is_an_input(source: str, tmp_path: Path) -> None:
    out = written_output(tmp_path / "texts" / "out")
    recipe = tmp_path / "recipe.yaml"
    source = source.format(out=out, above=out.parent)
    recipe.write_text(TRAINING.format(source=source, cache=tmp_path / "cache"))
    refused(out, train_model, recipe, out, device="cpu")


def test_recipe_cache_model_and_teacher_are_inputs_of_training(tmp_path: Path) -> None:
    out = written_output(tmp_path / "out")
    recipe, source = tmp_path / "recipe.yaml", "synthetic: notes"
    recipe.write_text(TRAINING.format(source=source, cache=out / "cache"))
    (out / "cache").mkdir()
    refused(out, train_model, recipe, out, device="cpu")
    (out / "cache").rmdir()
    inside = out / "recipe.yaml"
    inside.write_text(TRAINING.format(source=source, cache=tmp_path / "cache"))
    refused(models.earlier_output(out), train_model, inside, out, device="cpu")
    inside.unlink()
    teacher = toy(out / "teacher")
    text = TRAINING.format(source=source, cache=tmp_path / "cache")
    recipe.write_text(f"{text}method: recover\nrecover: {{teacher: {teacher}}}\n")
    refused(models.earlier_output(out), train_model, recipe, out, device="cpu")


def test_training_beside_its_text_is_allowed(tmp_path: Path) -> None:
    texts = written_output(tmp_path / "texts")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TRAINING.format(source=f"jsonl: {texts}/*.jsonl", cache=tmp_path / "cache"))
    assert train_model(recipe, texts / "out", device="cpu", dry_run=True).plan


def test_an_evaluated_model_is_an_input(model: Path) -> None:
    refused(model, evaluate_models, [f"m={model}"], model / "out", suite="toy", lengths="128")
    models.earlier_output(model.parent)
    refused(model, evaluate_models, [f"m={model}"], model.parent, suite="toy", lengths="128")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp("model") / "model")


@pytest.mark.parametrize(
    "options",
    [
        {"haystack": "{out}/deep/book.txt", "suite": "needle"},
        {"haystack": "{out}/deep", "suite": "needle"},
        {"haystack": "{above}", "suite": "needle"},
        {"qa": "{out}/squad.json", "suite": "qa_1"},
        {"suite": "zeroscrolls:{out}/deep"},
        {"adapters": "{out}/deep", "suite": "needle"},
    ],
)
def test_haystacks_questions_and_suites_are_inputs_of_an_evaluation(
    options: dict[str, str], model: Path, tmp_path: Path
) -> None:
    out = written_output(tmp_path / "texts" / "out")
    filled = {key: text.format(out=out, above=out.parent) for key, text in options.items()}
    for name in {"qa", "adapters"} & filled.keys():
        filled[name] = (filled[name],)
    refused(out, evaluate_models, [str(model)], out, lengths="128", items=1, dry_run=True, **filled)


def test_models_of_a_merge_and_its_recipe_are_inputs(tmp_path: Path) -> None:
    base, extended, _ = models.family(tmp_path / "out")
    recipe = tmp_path / "out" / "recipe.yaml"
    recipe.write_text(f"merge_method: linear\nmodels: [{{model: {base}}}, {{model: {extended}}}]\n")
    out = models.earlier_output(tmp_path / "out")
    refused(out, merge_models, recipe, out)
    recipe = recipe.rename(tmp_path / "recipe.yaml")
    refused(models.earlier_output(out), merge_models, recipe, out)


def test_a_job_is_told_apart_by_what_changes_its_output(tmp_path: Path) -> None:
    assert job_hash({"a": 1, "b": [2]}, "cpu") == job_hash({"b": [2], "a": 1}, "cpu")
    assert job_hash({"a": 1}, "cpu") != job_hash({"a": 1}, "cuda")
    with pytest.raises(ValueError, match="JSON"):
        job_hash({"loss": float("nan")})
    with Job(tmp_path / "out").start({"rank": 4}) as staging:
        staging.record("piece")
    with pytest.raises(InputError, match="other inputs or arguments"):
        Job(tmp_path / "out", resume=True).start({"rank": 8})
    with Job(tmp_path / "out", resume=True).start({"rank": 4}) as staging:
        assert staging.done("piece") == {}


def test_what_follows_the_main_bar_is_shown_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    bar = progress.bar

    def noting(description: str, total: float | None, **options: str):
        shown.append(description)
        return bar(description, total, **options)

    monkeypatch.setattr(progress, "bar", noting)
    base, extended, derivative = models.family(tmp_path)
    extract_lora(base, extended, tmp_path / "a", rank=2)
    assert shown[-4:] == [
        "Writing the adapter", "Writing the card", "Checking with PEFT", "Publishing a",
    ]  # fmt: skip
    shown.clear()
    apply_lora(tmp_path / "a", derivative, tmp_path / "b", verify=True)
    assert shown[-5:] == [
        "Grafting", "Writing the card", "Syncing to disk", "Verifying", "Publishing b",
    ]  # fmt: skip
    shown.clear()
    recipe = tmp_path / "recipe.yaml"
    text = TRAINING.format(source="synthetic: notes", cache=tmp_path / "cache")
    recipe.write_text(text.replace("synthetic: notes", "synthetic: notes, documents: 9"))
    train_model(recipe, tmp_path / "c", device="cpu")
    assert shown[-3:] == ["Exporting the model", "Drawing the curves", "Publishing c"]


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as of a write: without a name

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OutputError, match=r"Cannot write .*/regraft\.json: the disk is full"):
            write_json(tmp_path / "regraft.json", {})
    with pytest.raises(OutputError, match=r"a file in .*\.out\.regraft-staging: the disk is full"):
        fail_while_staged(tmp_path / "out", full)


@pytest.mark.parametrize("library", ["safetensors", "tokenizers"])
def test_a_library_that_cannot_write_names_the_file(library: str, tmp_path: Path) -> None:
    from regraft.data.toy_language import write_tokenizer

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    path = tmp_path / "x.safetensors"

    def write_weights() -> None:
        with library_writing(path):
            save_file({"x": torch.zeros(9000)}, path)

    try:
        with pytest.raises(OutputError, match="cannot hold a file this large") as caught:
            write_tokenizer(tmp_path) if library == "tokenizers" else write_weights()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert str(tmp_path) in str(caught.value)


def test_a_temporary_folder_that_cannot_be_removed_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []

    def failing(path: str, *arguments: object, **named: object) -> None:
        if "regraft-" in str(path) and "staging" not in str(path):
            removed.append(str(path))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rmdir(path, *arguments, **named)

    rmdir = os.rmdir
    recipe = tmp_path / "recipe.yaml"
    text = TRAINING.format(source="synthetic: notes, documents: 9", cache=tmp_path / "cache")
    recipe.write_text(text)
    monkeypatch.setattr(os, "rmdir", failing)
    train_model(recipe, tmp_path / "out", device="cpu")
    gc.collect()
    assert any("regraft-toy-" in path for path in removed)


def fail_while_staged(out: Path, action) -> None:
    with Job(out).start({}) as staging:
        staging.record("piece")
        action()
