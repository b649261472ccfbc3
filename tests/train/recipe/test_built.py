"""A built folder gives a training its sources, rows and mixes, and its token counts are used."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import regraft
from regraft.checkpoint.hf.tokenizer import open_tokenizer
from regraft.data.toy_language import Mix, training_row, write_tokenizer
from regraft.errors import InputError
from regraft.parallel import Mesh
from regraft.train.corpus import Corpus
from regraft.train.recipe.built_lengths import check_lengths
from regraft.train.recipe.recipe import Recipe

DATA = """
sources:
  - {{name: long, licence: CC0-1.0, jsonl: {folder}/long.jsonl}}
  - {{name: short, licence: CC0-1.0, jsonl: {folder}/short.jsonl, rows: packed}}
  - {{name: talks, licence: CC0-1.0, jsonl: {folder}/talks.jsonl, chat: true}}
output: {{tokenizer: {tokenizer}}}
mixes:
  most: {{long: 3, short: 1}}
"""
TRAIN = """
model: {{toy: {{length: 64, theta: 70}}}}
stages:
  - {{length: {length}, steps: 1, batch: 4, mix: most}}
  - {{length: 32, steps: 1, batch: 4, mix: {{talks: 1}}}}
data: {{built: {built}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built folder `text`, and the same counted in bytes as `bytes`."""
    folder = tmp_path_factory.mktemp("built")
    rng = random.Random(0)
    for name, count, words in (("long", 8, 150), ("short", 20, 24)):
        rows = [" ".join(training_row(rng, words, Mix(0.5, 0.5)).words[1:]) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in rows))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (folder / "talks.jsonl").write_text(json.dumps({"messages": turns}))
    write_tokenizer(folder / "tokenizer")
    for name, tokenizer in (("text", folder / "tokenizer"), ("bytes", "bytes")):
        recipe = folder / f"{name}.yaml"
        recipe.write_text(DATA.format(folder=folder, tokenizer=tokenizer))
        regraft.build_data(recipe, folder / name)
    return folder


def _recipe(folder: Path, tmp_path: Path, *, built: str = "text", length: int = 64) -> Recipe:
    path = tmp_path / "train.yaml"
    path.write_text(TRAIN.format(built=folder / built, length=length))
    return Recipe.read(path)


def test_sources_rows_and_mixes_are_those_of_the_folder(folder, tmp_path):
    recipe = _recipe(folder, tmp_path)
    sources = {source.name: source for source in recipe.body.data.sources}
    assert {name: source.rows for name, source in sources.items()} == {
        "long": "whole", "short": "packed", "talks": "whole"
    }  # fmt: skip
    assert (sources["talks"].chat, sources["talks"].field) == (True, "messages")
    assert recipe.mix(recipe.body.stages[0]) == {"long": 0.75, "short": 0.25}


def test_token_counts_are_those_of_the_training(folder, tmp_path):
    recipe = _recipe(folder, tmp_path)
    recipe.body.data.sources.pop()  # a toy without a chat template
    tokenizer = open_tokenizer(str(folder / "tokenizer"))
    corpus = Corpus(recipe, tokenizer, 2**20, Mesh())
    record = regraft.build_data(folder / "text.yaml", None, dry_run=True)
    built = json.loads((folder / "text" / "data.json").read_text())
    assert record.tokenizer.digest == built["tokenizer"]["digest"]
    for name in ("long", "short"):
        assert corpus.tokens[name].total == built["sources"][name]["out"]["tokens"]


def test_a_stage_longer_than_the_documents_is_refused_before_work(folder, tmp_path):
    tokenizer = open_tokenizer(str(folder / "tokenizer"))
    check_lengths(_recipe(folder, tmp_path, length=128), tokenizer)
    with pytest.raises(InputError, match=r"line 4: the longest document of 'long' .* has 15\d tok"):
        check_lengths(_recipe(folder, tmp_path, length=512), tokenizer)


def test_another_tokenizer_is_a_warning(folder, tmp_path):
    tokenizer = open_tokenizer(str(folder / "tokenizer"))
    with pytest.warns(UserWarning, match=r"counted by another tokenizer \(bytes\)"):
        check_lengths(_recipe(folder, tmp_path, built="bytes", length=512), tokenizer)


def test_bad_folders_and_mixes_are_named(folder, tmp_path):
    path = tmp_path / "train.yaml"
    text = TRAIN.format(built=folder / "text", length=64)
    for change, message in (
        ((str(folder / "text"), str(tmp_path)), "line 6: .* is not a folder of `regraft data"),
        (("mix: most", "mix: must"), r"line 4: 'must' is not a mix \(did you mean most\?\)"),
        ((f"built: {folder / 'text'}", "masks: true"), "line 6: give `sources`, or a folder"),
    ):  # fmt: skip
        path.write_text(text.replace(*change))
        with pytest.raises(InputError, match=message):
            Recipe.read(path)
    shard = next((folder / "bytes" / "data" / "long").iterdir())
    shard.write_bytes(shard.read_bytes() + b"x")
    with pytest.raises(InputError, match=r"00000.parquet has [\d,]+ bytes instead of [\d,]+; copy"):
        _recipe(folder, tmp_path, built="bytes")
