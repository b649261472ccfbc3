"""Benchmarks of the models that `regraft demo` trains."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from short_demo import write_short_recipe

pytestmark = pytest.mark.bench
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> Path:
    """A folder as `regraft demo` leaves it, from a demo of a few steps."""
    from regraft.graft.job import graft_model

    folder = tmp_path_factory.mktemp("toys")
    graft_model(write_short_recipe(folder / "demo.yaml", "[4, 16]"), folder / "demo-out")
    return folder / "demo-out"


def test_evaluation_is_timed(benchmark, toys, monkeypatch, children):
    module = importlib.import_module("evaluate")

    def run(command: list[str], **_: Any) -> None:
        done = children.run(*command[command.index("regraft") + 1 :])
        assert done["code"] == 0, done["err"]

    monkeypatch.setattr(module.subprocess, "run", run)
    printed, _, _ = benchmark("evaluate", toys, "--quick")
    assert "| 128 | 2 |" in printed
    assert "| needle | teacher | 1 |" in printed
    assert "| cells of a model |" in printed


def test_lm_eval_gives_the_same_verdicts(benchmark, toys):
    pytest.importorskip("lm_eval")
    printed, _, _ = benchmark("lm_eval_agreement", toys / "models/shouter", "--quick")
    assert printed.count("| 100% |") == 3


def test_calibrated_extraction_is_compared_with_plain(benchmark, toys):
    printed, _, _ = benchmark("calibrated", "--quick", "--demo", toys)
    assert "| plain, rank 2 |" in printed
    assert "| calibrated, rank 2 |" in printed


def test_grafts_without_intruders_are_compared(benchmark, toys):
    printed, _, _ = benchmark("intruders", "--quick", "--demo", toys)
    assert "| extracted, rank 16 | plain | 0 |" in printed
    assert "|  | change x 0.9 |" in printed


def test_intruders_are_damped_by_the_papers_formula(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    without_intruders = importlib.import_module("intruders").without_intruders
    before = torch.arange(32, 0, -1).double().diag()
    new = torch.full((32,), 32**-0.5).double()  # |cosine| 0.18 with every direction of `before`
    after = before + 200 * torch.outer(new, new.roll(1) * torch.tensor([1.0, -1.0] * 16))
    u, values, _ = torch.linalg.svd(after)
    damped, count = without_intruders(before, after, "value", 0.75)
    assert count == 1
    expected = torch.cat([0.75 * values[:1], values[1:]])
    torch.testing.assert_close(torch.linalg.svdvals(damped), expected)
    torch.testing.assert_close(u[:, 1:].T @ damped, u[:, 1:].T @ after)
    damped, _ = without_intruders(before, after, "change", 0.75)
    torch.testing.assert_close(u[:, 0] @ (damped - before), 0.75 * (u[:, 0] @ (after - before)))
    assert without_intruders(before, 2 * before, "value", 0.75)[1] == 0


def test_recoveries_are_compared(benchmark, toys):
    printed, _, _ = benchmark("recovery", "--quick", "--demo", toys)
    assert "| *graft-rank-4* |" in printed
    assert "| veto, distillation, LinearARD |" in printed


def test_relations_are_compared_by_rows_as_by_whole_matrices(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    recovery = importlib.import_module("recovery")
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2, 3, 7, 4, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    documents = torch.tensor([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1]])
    visible = (documents[:, :, None] == documents[:, None]).tril()[:, None]
    logs = [(z @ z.mT / 2).masked_fill(~visible, -torch.inf).log_softmax(-1) for z in (x, y)]
    q, p = (log.masked_fill(~visible, 0) for log in logs)
    expected = (p.exp() * (p - q) * visible).sum()
    result = recovery.relation_kl(x, y, documents, chunk=3)
    torch.testing.assert_close(result, expected)
    (ours,), (theirs,) = (torch.autograd.grad(loss, x) for loss in (result, expected))
    torch.testing.assert_close(ours, theirs)


def test_a_real_model_goes_through_the_whole_story(benchmark, toys, tmp_path):
    text = tmp_path / "diary.txt"
    text.write_text("the lantern paints that river .\n\n" * 4000)
    printed, _, _ = benchmark("real_model", toys / "trained/base", "--text", text, "--quick")
    assert "| graft, rank 2, exact layout |" in printed
    assert "| derivative, sliding window |" in printed
