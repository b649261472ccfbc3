"""Models on the Hub: what is downloaded, what opens offline, what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hub_server import COMMIT, HubServer
from model_files import model, two_shards
from scripts import Scripts

from regraft.checkpoint.read.files import INDEX
from regraft.checkpoint.read.source import Checkpoint

CLIENT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError

def answer(name, steps):
    out = {}
    try:
        with Checkpoint.open(name) as checkpoint:
            for verb, *args in steps:
                value = getattr(checkpoint, verb)
                value = value(*args) if callable(value) else value
                if verb == "tensor":
                    value = value.float().sum().item()
                elif verb == "file":
                    value = value.read_text()
                out[verb] = value
            out["shapes"] = {n: list(i.shape) for n, i in checkpoint.tensors.items()}
    except CheckpointError as error:
        out["error"] = str(error)
    return out

print(json.dumps(answer(*json.loads(sys.argv[1]))))
"""


@dataclass(frozen=True)
class Client:
    """Processes with one Hub environment, which open models and answer what they saw."""

    scripts: Scripts
    env: dict[str, str]

    def ask(self, name: str, *steps: list[str]) -> dict[str, Any]:
        done = self.scripts.run(CLIENT, json.dumps([name, steps]), env=self.env)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    folder = tmp_path_factory.mktemp("hub")
    good = model(folder / "good", two_shards())
    for name in ("tokenizer.json", "README.md", "pytorch_model.bin", "original/x.pth", "onnx/m"):
        (good / name).parent.mkdir(exist_ok=True)
        (good / name).write_text("text")
    pickled = folder / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_text("x")
    cut = model(folder / "cut") / "model.safetensors"
    os.truncate(cut, cut.stat().st_size - 10)
    names = {f"{'long' * 20}.{i}": torch.zeros(1) for i in range(900)}
    repos = {
        "org/good": good,
        "org/gated": good,
        "org/pickled": pickled,
        "org/cut": cut.parent,
        "org/long": model(folder / "long", {"model.safetensors": names}),
    }
    with HubServer(repos, gated=("org/gated",), down=("org/down",)) as server:
        yield server


@pytest.fixture(scope="module")
def clients(
    scripts: Scripts, hub: HubServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Client]:
    """Three clients with one cache: online, HF_HUB_OFFLINE, and with no Hub to be reached."""
    cache = tmp_path_factory.mktemp("cache")
    return {
        "online": Client(scripts, hub.env(cache)),
        "offline": Client(scripts, hub.env(cache, HF_HUB_OFFLINE="1")),
        "unplugged": Client(scripts, hub.env(cache, HF_ENDPOINT="http://127.0.0.1:9")),
    }


def test_hub_model_downloads_only_what_is_read_and_then_opens_offline(
    hub: HubServer, clients: dict[str, Client]
) -> None:
    online, offline = clients["online"], clients["offline"]
    local = Checkpoint.open(hub.repos["org/good"])
    first, second = sorted(two_shards())
    name = local.shards[second][0]
    hub.log.clear()

    seen = online.ask("org/good", ["revision"], ["other_files"], ["tied"])
    assert seen["shapes"] == {n: list(i.shape) for n, i in local.tensors.items()}
    assert seen["revision"] == COMMIT
    assert seen["other_files"] == ["tokenizer.json"]
    assert sorted(hub.downloads()) == ["config.json", INDEX]
    assert sorted(hub.ranges()) == [first, second]

    hub.log.clear()
    seen = online.ask(f"org/good@{COMMIT}", ["tensor", name], ["file", "tokenizer.json"])
    assert seen["tensor"] == local.tensor(name).float().sum().item()
    assert seen["file"] == "text"
    assert sorted(hub.downloads()) == sorted([second, "tokenizer.json"])

    hub.log.clear()
    message = offline.ask("org/good")["error"]
    assert first in message
    assert second not in message
    assert "HF_HUB_OFFLINE" in message

    assert "error" not in online.ask("org/good", ["fetch"])
    assert hub.downloads() == [first]

    hub.log.clear()
    for client in (offline, clients["unplugged"]):
        for name in ("org/good", "org/good@main", f"org/good@{COMMIT}"):
            seen = client.ask(name, ["fingerprint"], ["revision"], ["file", "tokenizer.json"])
            assert seen["fingerprint"] == local.fingerprint()
            assert seen["revision"] == COMMIT
            assert seen["file"] == "text"
    assert hub.log == []

    hub.down.append("org/good")
    assert online.ask("org/good", ["fingerprint"])["fingerprint"] == local.fingerprint()
    hub.down.remove("org/good")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("org/absent", "neither a local folder nor a model on the Hub"),
        ("org/gated", "is gated: ask for access"),
        ("org/long@v9", "has no revision 'v9'"),
        ("org/pickled", "pickled weights only"),
        ("org/down", "answered 503"),
        ("org/cut", "is truncated"),
    ],
)
def test_hub_refusals_are_one_sentence_each(
    hub: HubServer, clients: dict[str, Client], name: str, says: str
) -> None:
    hub.log.clear()
    message = clients["online"].ask(name)["error"]
    assert says in message
    assert "\n" not in message
    assert set(hub.downloads()) <= {"config.json"}


@pytest.mark.parametrize("client", ["offline", "unplugged"])
def test_unreachable_hub_is_said_to_be_unreachable(clients: dict[str, Client], client: str) -> None:
    message = clients[client].ask("org/absent")["error"]
    assert "is not a local folder, and the Hub cannot be reached" in message


def test_long_hub_header_is_fetched_in_two_ranges(
    hub: HubServer, clients: dict[str, Client]
) -> None:
    hub.log.clear()
    assert len(clients["online"].ask("org/long")["shapes"]) == 900
    assert hub.ranges() == ["model.safetensors"] * 2
