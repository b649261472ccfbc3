"""Every benchmark runs from end to end with toy sizes, offline, and leaves the tables alone."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from short_demo import write_short_recipe

pytestmark = pytest.mark.bench
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results"


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> Path:
    """A folder as `regraft demo` leaves it, from a demo of a few steps."""
    from regraft.graft.job import graft_model

    folder = tmp_path_factory.mktemp("toys")
    graft_model(write_short_recipe(folder / "demo.yaml", "[4, 16]"), folder / "demo-out")
    return folder / "demo-out"


@pytest.fixture
def benchmark(monkeypatch, tmp_path, children):
    """Call `main` of a benchmark with arguments, its commands in warmed-up processes. Asserts that
    no table changed; returns what it printed and the commands of mergekit."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)  # so that the default folder, which is relative, is a new one
    mergekit: list[list[str]] = []

    def run(command: list[str], **env: str) -> Any:
        from harness import Child

        name = Path(command[0]).name
        if name == "regraft":
            done = children.run(*command[1:])
            assert done["code"] == 0, done["err"]
        elif name.startswith("mergekit"):
            mergekit.append(command)
        elif command[1] == "-c" and name != "sh":
            with monkeypatch.context() as patch:
                patch.setattr(sys, "argv", command[1:2] + command[3:])
                exec(command[2], {"__name__": "__main__"})
        else:
            subprocess.run(command, check=True, env={**os.environ, **env})
        return Child(1.0 + len(mergekit) + run.calls, 1.0, 10**9)

    run.calls = 0

    def timed(command: list[str], **env: str) -> Any:
        run.calls += 1  # a later run takes longer, so that no difference of times is zero
        return run(command, **env)

    def call(name: str, *arguments: str | Path) -> tuple[str, list[list[str]], ModuleType]:
        module = importlib.import_module(name)
        if hasattr(module, "run"):
            monkeypatch.setattr(module, "run", timed)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        before = {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()}
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                code = module.main()
            except SystemExit as stop:
                code = stop.code
        assert not code, printed.getvalue()
        assert {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()} == before
        return printed.getvalue(), mergekit, module

    return call


def test_extract_runs_without_mergekit_even_where_it_is_not_installed(benchmark, monkeypatch):
    import harness

    def version(package: str) -> str:
        assert package != "mergekit"
        return "1"

    monkeypatch.setattr(harness, "version", version)
    printed, mergekit, _ = benchmark("extract", "--quick", "--skip-mergekit")
    assert "| mlp.down_proj |" in printed
    assert mergekit == []


def test_mergekit_gets_absolute_paths_from_the_default_folder(benchmark, monkeypatch):
    """A relative path that mergekit does not find in its place is an id of the Hub to it."""
    import shutil

    import llama8b

    importlib.import_module("extract")
    benchmark_extract = sys.modules["extract"]
    real = benchmark_extract._mergekit

    def stand_in(base: Path, extended: Path, out: Path, rank: int) -> Any:
        child = real(base, extended, out, rank)
        shutil.copytree(out.parent / "lora", out, dirs_exist_ok=True)  # what mergekit would write
        return child

    monkeypatch.setattr(benchmark_extract, "_mergekit", stand_in)
    printed, mergekit, _ = benchmark("extract", "--quick")
    assert "| regraft | mergekit |" in printed
    command = mergekit[0]
    for flag in ("--model", "--base-model"):
        path = Path(command[command.index(flag) + 1])
        assert path.is_absolute()
        assert (path / "config.json").is_file()
    assert Path(command[command.index("--out-path") + 1]).is_absolute()
    assert llama8b.make(Path("bench-out"), 1, "base", llama8b.TOY).is_absolute()


def test_apply_runs_and_agrees_with_peft(benchmark):
    printed, _, _ = benchmark("apply", "--quick")
    assert printed.count("| PEFT merge_and_unload |") == 2
    assert "1 layers: 0 of " in printed


def test_merge_runs_every_method(benchmark):
    printed, _, _ = benchmark("merge", "--quick", "--skip-mergekit")
    for method in ("ties", "dare_ties", "linear", "slerp"):
        assert f"| {method} | regraft |" in printed


def test_merge_kill_compares_bytes(benchmark):
    assert "1 of 1 outputs are byte-identical" in benchmark("merge_kill", "--quick")[0]


def test_attention_measures_every_kernel(benchmark):
    printed, _, _ = benchmark("attention", "--quick")
    for name in ("torch SDPA", "kernel", "gather", "ring"):
        assert f"| 128 | {name}" in printed


def test_a_training_step_is_compared_with_a_plain_one(benchmark):
    printed, _, _ = benchmark("train_step", "--quick")
    assert printed.count("| full |") == printed.count("| lora |") == 2


def test_certificates_are_counted(benchmark):
    assert "Certificate below the true ratio: **0**" in benchmark("certificate", "--quick")[0]


def test_the_demo_runs_by_seed(benchmark):
    assert "| graft, skill at 64 |" in benchmark("demo_seeds", "--quick")[0]


def test_the_extension_is_tried_four_ways(benchmark):
    printed, _, module = benchmark("extend", "--quick")
    assert all(f"| {name} |" in printed for name in module.RECIPES)


def test_the_theta_probe_is_followed_by_a_training(benchmark):
    assert "| scaling law |" in benchmark("theta_probe", "--quick")[0]


def test_data_speed_builds_with_each_step(benchmark):
    printed, _, module = benchmark("data_speed", "--quick")
    assert [printed.count(f"| {step} |") for step in module.LARGE] == [2, 2, 2, 2]


def test_trainings_on_chosen_text_are_compared(benchmark):
    printed, _, _ = benchmark("data_training", "--quick")
    assert "| before |" in printed
    assert "| context gain |" in printed
    assert "| shorts untied, keys | 100% shorts |" in printed


def test_measures_of_dependency_see_four_kinds_of_text(benchmark):
    printed, _, _ = benchmark("context_gain", "--quick")
    assert "| one piece repeated, copies count | " in printed
    assert printed.count("| eight texts joined | ") == 2


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


def test_configs_are_compared_between_two_pythons(benchmark, monkeypatch):
    """The present transformers in both places: its own files agree with themselves."""

    def in_this_process(command: list[str], *, input: str, **_: Any) -> Any:
        printed = io.StringIO()
        with monkeypatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.setattr(sys, "stdin", io.StringIO(input))
            exec(command[2], {"__name__": "__main__"})
        return subprocess.CompletedProcess(command, 0, printed.getvalue(), "")

    module = importlib.import_module("config_roundtrip")
    monkeypatch.setattr(module.subprocess, "run", in_this_process)
    printed, _, _ = benchmark("config_roundtrip", "--old-python", sys.executable)
    assert "DISAGREE" not in printed
    assert "agree" in printed


def test_logits_are_compared_between_two_pythons(benchmark):
    printed, _, _ = benchmark("transformers4_logits", "--quick", "--old-python", sys.executable)
    assert "| theta | regraft apply |" in printed
    assert "DIFFERENT" not in printed


def test_llama_cpp_says_what_to_install_where_it_is_missing(tmp_path):
    line = [sys.executable, BENCHMARKS / "llama_cpp.py", "--python", "/nowhere/python", "--quick"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install llama-cpp-python" in done.stderr
    assert done.stderr.count("\n") == 1


def test_endpoint_says_what_to_install_where_it_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    words = ["endpoint.py", "--python", "/nowhere/python", "--real", "smollm.gguf"]
    monkeypatch.setattr(sys, "argv", words)
    assert importlib.import_module("endpoint").main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "pip install 'llama-cpp-python[server]" in printed.err
    assert printed.err.count("\n") == 1


def test_replies_are_counted_and_asked_for_once(benchmark):
    printed, _, _ = benchmark("rephrase", "--quick")
    assert "| passages | 8 | 100% |" in printed
    assert "8 an answer that is in several pieces" in printed
    assert "The second builds have the same bytes." in printed


def test_steps_are_rehearsed_by_shape(benchmark):
    printed, _, _ = benchmark("rehearse", "--quick")
    assert "| toy | full | 256 | ulysses 2 x shard 2 | offload |" in printed
    assert "all-to-all" in printed


def test_traces_stand_beside_published_figures(benchmark):
    assert "| toy | toy | lora | 64 |" in benchmark("published", "--quick")[0]
