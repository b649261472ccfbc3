"""A graft recipe whose extraction is calibrated: its text belongs to the stage's key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluated import toy
from models import changed, load, save

from regraft.data.sources import Text, documents
from regraft.data.toy_language import write_tokenizer
from regraft.errors import InputError
from regraft.graft.job import graft_model
from regraft.records import AdapterRecord, read_record


def test_a_changed_text_makes_the_adapter_again(tmp_path: Path) -> None:

    base = toy(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    longer = {**config, "rope_theta": 160000.0, "max_position_embeddings": 1024}
    write_tokenizer(
        save(tmp_path / "extended", longer, changed(load(base), rank=None, size=0.03, seed=1))
    )
    text, recipe, out = tmp_path / "text.txt", tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(
        f"base: {base}\nextended: {tmp_path / 'extended'}\ntargets: [{base}]\nranks: [2]\n"
        f"extract: {{calibrate: {text}, calibrate_length: 32, calibrate_tokens: 128}}\n"
    )
    with pytest.raises(InputError, match="no such file or folder"):
        graft_model(recipe, out)
    words = "\n".join(documents(Text("synthetic", "notes", documents=2, words=200)))
    text.write_text(words)
    graft_model(recipe, out)
    path = out / "adapters/rank-2/regraft.json"
    first = read_record(path, AdapterRecord, "").extraction
    graft_model(recipe, out)
    assert read_record(path, AdapterRecord, "").extraction == first
    text.write_text(words[500:])
    graft_model(recipe, out)
    second = read_record(path, AdapterRecord, "").extraction
    assert first is not None
    assert second is not None
    assert first.calibration is not None
    assert second.calibration is not None
    assert first.calibration.digest != second.calibration.digest
