"""A Hub that lists files with names that lead elsewhere: none is fetched, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

from evaluated import toy
from hub_server import HubServer
from models import contents
from peft_folders import adapter
from scripts import Scripts

NAMES = (
    "../../../escaped.json", "/{root}/absolute.json", "tokenizer/../../../../escaped.json",
    "a/../../escaped.txt", "..", "tokenizer\\..\\escaped.json", "./../escaped.json",
    "../tokenizer.json", "adapter/../../adapter_config.json",
    "additional_chat_templates/../../escaped.jinja",
)  # fmt: skip
SCRIPT = """
import json, sys
from regraft.adapters.reader import Adapter
from regraft.checkpoint.hf.pretrained import load_model
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.hf.tokenizer import load_tokenizer

with Checkpoint.open("org/model") as model:
    seen = model.other_files()
    files = [model.file(name) for name in (*seen, *sys.argv[1:])]
    load_model(model)
    words = len(load_tokenizer(model).get_vocab())
lora = Adapter.open("org/adapter")
print(json.dumps([seen, [path and str(path) for path in files], words, len(lora.modules)]))
"""


def test_names_that_lead_elsewhere_are_not_files_of_a_repository(
    scripts: Scripts, tmp_path: Path
) -> None:
    cache = tmp_path / "cache" / "deep" / "er"
    cache.mkdir(parents=True)
    model = toy(tmp_path / "repos" / "model")
    lora = adapter(tmp_path / "repos" / "adapter")
    names = [name.format(root=str(tmp_path).strip("/")) for name in NAMES]
    before = contents(tmp_path / "repos")
    hostile = dict.fromkeys(names, b'{"evil": 1}')
    with HubServer({"org/model": model, "org/adapter": lora}, hostile=hostile) as hub:
        done = scripts.run(SCRIPT, *names, env=hub.env(cache), cwd=cache)
        requested = [path for _, path, _ in hub.log]
    assert done.returncode == 0, done.stderr
    seen, files, words, modules = json.loads(done.stdout)
    assert seen == ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert all(Path(path).is_relative_to(cache) for path in files[: len(seen)])
    assert files[len(seen) :] == [None] * len(names)
    assert words > 100
    assert modules == 1
    assert not [path for path in requested if "escaped" in path or "absolute" in path]
    assert contents(tmp_path / "repos") == before
    written = {path for path in contents(tmp_path) if not path.startswith(("repos/", "cache/deep"))}
    assert written == set()
    assert not [path for path in contents(cache) if "escaped" in path or "absolute" in path]
