"""A training state is data: no code in its files is run, and damage is one sentence."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from regraft.errors import InputError, RegraftError
from regraft.train import state
from regraft.train.job import train_model
from regraft.train.sharded_state import load_sharded, save_sharded

RECIPE = """
model: {toy: {length: 64, theta: 70, hidden: 32, intermediate: 48}}
stages: [{length: 64, steps: 4, batch: 1, rate: 1e30}]
data: {cache: CACHE, sources: [{name: a, synthetic: notes, words: 64, documents: 9}]}
save_every: 1
"""


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def interrupted(tmp_path: Path) -> tuple[Path, Path]:
    """(recipe, state folder) of a training that ended with infinite weights."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("CACHE", str(tmp_path / "cache")))
    with pytest.raises(RegraftError, match="lower the rate"):
        train_model(recipe, tmp_path / "out", device="cpu")
    saved = state.latest(tmp_path / ".out.regraft-staging" / "states")
    assert saved is not None
    assert sorted(path.name for path in saved.iterdir()) == ["loop.json", "model.pt"]
    return recipe, saved


def refused(recipe: Path) -> str:
    with pytest.raises(InputError, match=r"training state .* is damaged or was not written") as no:
        train_model(recipe, recipe.parent / "out", device="cpu", resume=True)
    return str(no.value)


def test_code_in_a_state_is_not_run(interrupted: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, saved = interrupted
    ran = tmp_path / "ran"
    whole = torch.load(saved / "model.pt", weights_only=True)
    torch.save({**whole, "more": Exploit(ran)}, saved / "model.pt")
    torch.save(Exploit(ran), saved / "loop.pt")  # of an earlier version, not read
    assert "UnpicklingError" in refused(recipe)
    (saved / "loop.json").write_bytes(pickle.dumps(Exploit(ran)))
    refused(recipe)
    assert not ran.exists()
    torch.load(saved / "model.pt", weights_only=False)
    assert ran.exists()  # the exploit works where code is run


@pytest.mark.parametrize(
    ("name", "content"),
    [("loop.json", b""), ("loop.json", b"[]"), ("loop.json", b'{"run": {}}'),
     ("loop.json", b"[" * 100_000), ("model.pt", b""), ("model.pt", b"PK\x03\x04 cut")],
)  # fmt: skip
def test_a_damaged_state_is_one_sentence(
    name: str, content: bytes, interrupted: tuple[Path, Path]
) -> None:
    recipe, saved = interrupted
    (saved / name).write_bytes(content)
    assert "start again with --overwrite" in refused(recipe)


def test_a_sharded_state_is_data(tmp_path: Path) -> None:
    values = {"model": {"a": torch.randn(3, 2), "b": torch.randn(2).bfloat16()},
              "groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "none": None}]}  # fmt: skip
    save_sharded(values, tmp_path / "state")
    empty = {"model": {name: torch.zeros_like(t) for name, t in values["model"].items()},
             "groups": [{"lr": 0.0, "betas": (0.0, 0.0), "none": 1}]}  # fmt: skip
    load_sharded(empty, tmp_path / "state")
    assert empty["groups"] == values["groups"]
    assert all(torch.equal(empty["model"][name], t) for name, t in values["model"].items())
    ran = tmp_path / "ran"
    save_sharded({"value": Exploit(ran)}, tmp_path / "value")
    with pytest.raises(pickle.UnpicklingError):
        load_sharded({"value": 1}, tmp_path / "value")
    (tmp_path / "state" / ".metadata").write_bytes(pickle.dumps(Exploit(ran)))
    with pytest.raises(pickle.UnpicklingError, match="not part of a checkpoint's metadata"):
        load_sharded(empty, tmp_path / "state")
    (tmp_path / "state" / ".metadata").write_bytes(pickle.dumps(torch.Size([1])))
    with pytest.raises(pickle.UnpicklingError, match="not a checkpoint's metadata"):
        load_sharded(empty, tmp_path / "state")
    assert not ran.exists()
