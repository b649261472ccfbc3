"""A Hub dataset whose file names or card point outside it: nothing there is read or written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_server import HubServer
from models import contents
from scripts import Scripts

pytest.importorskip("datasets")
SCRIPT = """
import json, sys
from regraft.data.sources import Text, documents
from regraft.errors import InputError

try:
    print(json.dumps(list(documents(Text("hub", "org/data")))))
except InputError as error:
    print(json.dumps(str(error)))
"""
NAMES = (
    "../../../escaped.jsonl", "/{root}/absolute.jsonl", "data/../../../../escaped.jsonl",
    "train/../../escaped.jsonl", "..", "./../escaped.jsonl",
)  # fmt: skip


def read(
    scripts: Scripts, folder: Path, *, card: str = "", names: tuple[str, ...] = ()
) -> tuple[list[str] | str, list[str]]:
    """The texts (or the message) that a client reads from a dataset with this card and these files
    beside its own, and the paths that it requested."""
    repo, cache = folder / "repo", folder / "cache" / "deep" / "er"
    repo.mkdir()
    cache.mkdir(parents=True)
    (repo / "train.jsonl").write_text('{"text": "its own"}\n')
    (folder / "secret.jsonl").write_text('{"text": "secret"}\n')
    if card:
        (repo / "README.md").write_text(card)
    before = contents(folder)
    hostile = dict.fromkeys(names, b'{"text": "evil"}\n')
    with HubServer({"org/data": repo}, hostile=hostile) as hub:
        env = hub.env(cache, HF_DATASETS_CACHE=str(cache / "datasets"))
        done = scripts.run(SCRIPT, env=env, cwd=cache)
        requested = [path for _, path, _ in hub.log]
    assert done.returncode == 0, done.stderr
    after = {
        name: data for name, data in contents(folder).items() if not name.startswith("cache/deep/")
    }
    assert after == before
    return json.loads(done.stdout), requested


def test_file_names_that_point_outside_write_nothing_there(
    scripts: Scripts, tmp_path: Path
) -> None:
    names = tuple(name.format(root=str(tmp_path).strip("/")) for name in NAMES)
    texts, _ = read(scripts, tmp_path, names=names)
    assert "its own" in texts
    assert "secret" not in texts
    assert not {"escaped", "absolute"} & {path.stem for path in tmp_path.rglob("*.jsonl")}


@pytest.mark.parametrize(
    "data_files", ["{root}/secret.jsonl", "../../secret.jsonl", "file://{root}/*.jsonl"]
)
def test_a_card_that_names_files_outside_is_refused(
    scripts: Scripts, tmp_path: Path, data_files: str
) -> None:
    name = data_files.format(root=tmp_path)
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {json.dumps(name)}\n---\n"
    message, requested = read(scripts, tmp_path, card=card)
    assert isinstance(message, str)
    assert message.startswith("The dataset org/data (split train) cannot be loaded (")
    assert "\n" not in message
    assert not [path for path in requested if "secret" in path]
