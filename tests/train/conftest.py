"""The text and the finished run that tests of training share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from train_recipes import write_recipe

from regraft.data.sources import Text, documents
from regraft.device import single_threaded
from regraft.train.job import train_model


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread, as in the processes with which runs are compared."""
    with single_threaded():
        yield


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """short.jsonl, texts of many lengths, and the cache of tokens."""
    folder = tmp_path_factory.mktemp("data")
    with (folder / "short.jsonl").open("w") as file:
        for words in (9, 17, 30, 44, 64):
            for text in documents(Text("synthetic", "notes", documents=8, words=words)):
                file.write(json.dumps({"text": text}) + "\n")
    return folder


@pytest.fixture(scope="session")
def trained_model(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    """The output of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("trained")
    with single_threaded():
        train_model(write_recipe(folder, data_folder), folder / "out", device="cpu")
    return folder / "out"
